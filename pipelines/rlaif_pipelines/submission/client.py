"""Runs on Kubeflow Pipelines: submit, list, look at, follow, cancel, repeat."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import kfp_server_api

from rlaif.core.errors import ConflictError, DeadlineError, NotFoundError, QuotaExceededError, UnavailableError
from rlaif_pipelines.submission.api import Api
from rlaif_pipelines.submission.connection import Connection
from rlaif_pipelines.submission.package import Package, titles_of
from rlaif_pipelines.submission.parameters import check_parameters
from rlaif_pipelines.submission.runs import Run, run_of
from rlaif_pipelines.submission.schedules import Schedule, SchedulePage, Trigger, schedule_of

DEFAULT_EXPERIMENT: Final = "rlaif"
MAX_PAGE: Final = 200
_PASSING: Final = (UnavailableError, DeadlineError, QuotaExceededError)
_PATIENCE_SECONDS: Final = 300.0
_LISTED: Final = {"run": "runs", "schedule": "schedule"}


@dataclass(frozen=True)
class RunPage:
    """Some runs, the latest first; `next_page` asks for those after them, empty after the last."""

    runs: tuple[Run, ...]
    next_page: str = ""


@dataclass(frozen=True)
class Uploaded:
    """A version of a pipeline that the API has."""

    pipeline_id: str
    version_id: str
    version: str
    is_new: bool


class PipelinesClient:
    """One Kubeflow Pipelines. Methods block, raise errors of `rlaif.core.errors`, and try reads again, never writes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._api = Api(connection)
        self._experiments = kfp_server_api.ExperimentServiceApi(self._api)
        self._pipelines = kfp_server_api.PipelineServiceApi(self._api)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(self._api)
        self._runs = kfp_server_api.RunServiceApi(self._api)
        self._recurring = kfp_server_api.RecurringRunServiceApi(self._api)
        self._titles: dict[tuple[str, str], Mapping[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._api.rest_client.pool_manager.clear()
        self._api.close()

    def submit(
        self,
        package: Package,
        parameters: Mapping[str, Any],
        *,
        experiment: str = DEFAULT_EXPERIMENT,
        run_name: str = "",
        description: str = "",
        pipeline_root: str = "",
        service_account: str = "",
    ) -> Run:
        """A new run with these parameters, checked before anything is sent; the pipeline is uploaded if it is new."""
        checked = check_parameters(parameters, definitions=package.parameters, pipeline=package.name)
        uploaded = self.upload(package)
        created = self._runs.run_service_create_run(
            run=kfp_server_api.V2beta1Run(
                display_name=run_name or default_name(package),
                description=description or None,
                experiment_id=self.experiment(experiment),
                pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
                    pipeline_id=uploaded.pipeline_id, pipeline_version_id=uploaded.version_id
                ),
                runtime_config=kfp_server_api.V2beta1RuntimeConfig(
                    parameters=checked, pipeline_root=pipeline_root or None
                ),
                service_account=service_account or None,
            )
        )
        return self._run(created)

    def upload(self, package: Package) -> Uploaded:
        """The pipeline's version of this content; one that is there is not uploaded again."""
        pipeline_id = self._pipeline_id(package.name) or self._created_pipeline(package.name)
        version_id, is_new = self._version_id(pipeline_id, package.version), False
        if version_id is None:
            with tempfile.TemporaryDirectory(prefix="rlaif-") as folder:
                file = Path(folder) / f"{package.version}.yaml"
                file.write_text(package.text, encoding="utf-8")
                # When somebody else uploads the same at the same time, theirs will do.
                with suppress(ConflictError):
                    self._uploads.upload_pipeline_version(str(file), name=package.version, pipelineid=pipeline_id)
                    is_new = True
            version_id = self._version_id(pipeline_id, package.version)
        if version_id is None:
            raise UnavailableError(
                f"{self.connection.host} took version {package.version} of pipeline {package.name} and does not list it"
            )
        return Uploaded(pipeline_id, version_id, package.version, is_new)

    def experiment(self, name: str) -> str:
        """Id of the experiment of that name, created if there is none."""
        found = self._experiment_id(name)
        if found is not None:
            return found
        created = self._experiments.experiment_service_create_experiment(
            experiment=kfp_server_api.V2beta1Experiment(display_name=name, **self._in_namespace())
        )
        return str(created.experiment_id)

    def run(self, run_id: str) -> Run:
        """A run with its tasks; NotFoundError if there is none of that id."""
        found = self._about("run", run_id, self._runs.run_service_get_run)
        return self._run(found, with_titles=True)

    def runs(self, *, experiment: str = "", state: str = "", page_size: int = 20, page: str = "") -> RunPage:
        """A page of runs, the latest first, of one experiment and in one state where these are given."""
        asked: dict[str, Any] = self._in_namespace()
        if experiment:
            asked["experiment_id"] = self._existing_experiment(experiment)
        if state:
            asked["filter"] = _equals("state", state)
        found = self._runs.run_service_list_runs(
            page_size=min(page_size, MAX_PAGE), page_token=page or None, sort_by="created_at desc", **asked
        )
        return RunPage(tuple(map(self._run, found.runs or [])), next_page=found.next_page_token or "")

    def cancel(self, run_id: str) -> None:
        """Asks for the run's end; its tasks are stopped, what it has finished stays."""
        self._about("run", run_id, self._runs.run_service_terminate_run)

    def follow(
        self, run_id: str, *, pause_seconds: float = 5.0, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[Run]:
        """The run as it is now, again after each pause, until it has ended.

        An API that cannot answer is asked again for five minutes before the error is raised.
        """
        failing_since: float | None = None
        while True:
            try:
                run = self.run(run_id)
            except _PASSING:
                failing_since = time.monotonic() if failing_since is None else failing_since
                if time.monotonic() - failing_since > _PATIENCE_SECONDS:
                    raise
            else:
                failing_since = None
                yield run
                if run.has_ended:
                    return
            sleep(pause_seconds)

    def create_schedule(
        self,
        package: Package,
        parameters: Mapping[str, Any],
        *,
        when: Trigger,
        name: str,
        experiment: str = DEFAULT_EXPERIMENT,
        service_account: str = "",
    ) -> Schedule:
        """Runs again and again with these parameters, one at a time; what was missed is not made up for."""
        checked = check_parameters(parameters, definitions=package.parameters, pipeline=package.name)
        uploaded = self.upload(package)
        created = self._recurring.recurring_run_service_create_recurring_run(
            recurring_run=kfp_server_api.V2beta1RecurringRun(
                display_name=name,
                experiment_id=self.experiment(experiment),
                pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
                    pipeline_id=uploaded.pipeline_id, pipeline_version_id=uploaded.version_id
                ),
                runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=checked),
                service_account=service_account or None,
                trigger=when.to_api(),
                mode=kfp_server_api.RecurringRunMode.ENABLE,
                max_concurrency="1",
                no_catchup=True,
                **self._in_namespace(),
            )
        )
        return schedule_of(created)

    def schedules(self, *, page_size: int = 20, page: str = "") -> SchedulePage:
        """A page of schedules, the latest first."""
        found = self._recurring.recurring_run_service_list_recurring_runs(
            page_size=min(page_size, MAX_PAGE),
            page_token=page or None,
            sort_by="created_at desc",
            **self._in_namespace(),
        )
        return SchedulePage(tuple(map(schedule_of, found.recurring_runs or [])), next_page=found.next_page_token or "")

    def pause_schedule(self, schedule_id: str) -> None:
        """Starts no more runs until it is resumed; runs that have begun go on."""
        self._about("schedule", schedule_id, self._recurring.recurring_run_service_disable_recurring_run)

    def resume_schedule(self, schedule_id: str) -> None:
        """Starts runs again."""
        self._about("schedule", schedule_id, self._recurring.recurring_run_service_enable_recurring_run)

    def delete_schedule(self, schedule_id: str) -> None:
        """Starts no more runs; those it started stay."""
        self._about("schedule", schedule_id, self._recurring.recurring_run_service_delete_recurring_run)

    def log_bytes(self, run_id: str, pod: str, *, most_bytes: int) -> bytes:
        """The end of what a pod of the run printed, as the API has it, from the pod or from its archive."""
        run_id, pod = quote(run_id, safe=""), quote(pod, safe="")
        return self._api.text_of(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", most_bytes=most_bytes)

    def _pipeline_id(self, name: str) -> str | None:
        found = self._pipelines.pipeline_service_list_pipelines(
            filter=_equals("display_name", name), page_size=1, **self._in_namespace()
        )
        return str(found.pipelines[0].pipeline_id) if found.pipelines else None

    def _created_pipeline(self, name: str) -> str:
        try:
            created = self._pipelines.pipeline_service_create_pipeline(
                pipeline=kfp_server_api.V2beta1Pipeline(name=name, display_name=name, **self._in_namespace())
            )
        except ConflictError:  # created meanwhile
            found = self._pipeline_id(name)
            if found is None:
                raise
            return found
        return str(created.pipeline_id)

    def _version_id(self, pipeline_id: str, version: str) -> str | None:
        found = self._pipelines.pipeline_service_list_pipeline_versions(
            pipeline_id, filter=_equals("display_name", version), page_size=1
        )
        return str(found.pipeline_versions[0].pipeline_version_id) if found.pipeline_versions else None

    def _experiment_id(self, name: str) -> str | None:
        found = self._experiments.experiment_service_list_experiments(
            filter=_equals("display_name", name), page_size=1, **self._in_namespace()
        )
        return str(found.experiments[0].experiment_id) if found.experiments else None

    def _existing_experiment(self, name: str) -> str:
        found = self._experiment_id(name)
        if found is None:
            raise NotFoundError(f"there is no experiment {name!r} at {self.connection.host}", field="--experiment")
        return found

    def _run(self, found: Any, *, with_titles: bool = False) -> Run:
        reference = found.pipeline_version_reference
        titles: Mapping[str, str] = {}
        if with_titles and reference is not None and reference.pipeline_version_id:
            titles = self._titles_of(reference.pipeline_id, reference.pipeline_version_id)
        return run_of(found, link=self.connection.run_link(str(found.run_id)), titles=titles)

    def _titles_of(self, pipeline_id: str, version_id: str) -> Mapping[str, str]:
        """Names of a pipeline's groups; none where its version was deleted since."""
        key = (pipeline_id, version_id)
        if key not in self._titles:
            try:
                version = self._pipelines.pipeline_service_get_pipeline_version(pipeline_id, version_id)
                spec = version.pipeline_spec or {}
                self._titles[key] = titles_of(spec.get("pipeline_spec", spec))
            except NotFoundError:
                self._titles[key] = {}
        return self._titles[key]

    def _about(self, kind: Literal["run", "schedule"], name: str, ask: Callable[[str], Any]) -> Any:
        try:
            return ask(name)
        except NotFoundError:
            raise NotFoundError(
                f"there is no {kind} {name} at {self.connection.host}; see `rlaif {_LISTED[kind]} list`",
                metadata={"resource_type": kind, "resource_name": name},
            ) from None

    def _in_namespace(self) -> dict[str, Any]:
        return {"namespace": self.connection.namespace} if self.connection.namespace else {}


def default_name(package: Package) -> str:
    """Name of a run that was given none."""
    return f"{package.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _equals(key: str, value: str) -> str:
    """A filter of the API."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})
