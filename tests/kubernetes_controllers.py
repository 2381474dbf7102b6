"""Controllers of a cluster: the pods of a Job, the Job of a JobSet, the JobSet of a TrainJob.

For an Indexed Job only what a plain cluster does; for a TrainJob what Kubeflow Trainer 2 and JobSet make of it and of
its TrainingRuntime. They act on the store alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes_api import Object, Refused, Store, phase
from kubernetes_schemas import problems

INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAME = "batch.kubernetes.io/job-name"


class Controllers:
    """Brings what is nearer to what is asked for, a step at a time."""

    def __init__(self, store: Store) -> None:
        self.pod_refusal: str | None = None
        """What admission says of pods."""
        self.pods_allowed = 0
        """How many it lets in before it says so."""
        self.has_trainer = True
        self._store = store

    def step(self) -> None:
        """Looks at everything once."""
        if self.has_trainer:
            self._train_jobs()
        self._job_sets()
        self._jobs()
        self._store.collect_garbage()

    def _train_jobs(self) -> None:
        for train in self._store.find("trainjobs"):
            name = train["metadata"]["name"]
            if self._store.get("jobsets", name) is None:
                if "deletionTimestamp" not in train["metadata"] and not _conditions(train):
                    job_set = job_set_of(train, self._runtime(train))
                    assert problems(job_set, version="1.36") == []
                    self._store.create("jobsets", job_set)
                continue
            job = self._store.get("jobs", f"{name}-node-0")
            for kind in ("Complete", "Failed") if job else ():
                found = _conditions(job).get(kind)
                if found:
                    reason = {"Complete": "AllJobsCompleted", "Failed": "FailedJobs"}[kind]
                    self._store.update("trainjobs", name, _with_condition(kind, reason, f"jobset {kind.lower()}"))

    def _runtime(self, train: Object) -> Object:
        runtime = self._store.get("trainingruntimes", train["spec"]["runtimeRef"]["name"])
        assert runtime is not None, "Trainer's admission lets no TrainJob in whose runtime is missing"
        return runtime

    def _job_sets(self) -> None:
        for job_set in self._store.find("jobsets"):
            name = job_set["metadata"]["name"]
            if "deletionTimestamp" in job_set["metadata"] or self._store.get("jobs", f"{name}-node-0"):
                continue
            owner = _owner(job_set)
            network = job_set["spec"]["network"]
            service = {
                "metadata": {"name": network["subdomain"], "ownerReferences": [owner]},
                "spec": {
                    "clusterIP": "None",
                    "selector": {"jobset.sigs.k8s.io/jobset-name": name},
                    "publishNotReadyAddresses": network["publishNotReadyAddresses"],
                },
            }
            self._store.create("services", service)
            replicated = job_set["spec"]["replicatedJobs"][0]
            template = copy.deepcopy(replicated["template"])
            template["spec"]["completionMode"] = "Indexed"
            pod = template["spec"]["template"]
            pod.setdefault("metadata", {}).setdefault("labels", {})["jobset.sigs.k8s.io/jobset-name"] = name
            pod["spec"]["subdomain"] = network["subdomain"]
            meta = {"name": f"{name}-{replicated['name']}-0", "ownerReferences": [owner]}
            self._store.create("jobs", {"metadata": meta, "spec": template["spec"]})

    def _jobs(self) -> None:
        for job in self._store.find("jobs"):
            spec, name = job["spec"], job["metadata"]["name"]
            pods = self._store.find("pods", labels=f"{JOB_NAME}={name}")
            kinds = _conditions(job)
            if "deletionTimestamp" in job["metadata"] or "Complete" in kinds or "Failed" in kinds:
                continue
            failed = [
                pod
                for pod in pods
                if phase(pod) == "Failed" or ("deletionTimestamp" in pod["metadata"] and phase(pod) != "Succeeded")
            ]
            if spec.get("suspend") or "FailureTarget" in kinds:
                for pod in pods:
                    if phase(pod) in ("Pending", "Running"):
                        self._store.delete("pods", pod["metadata"]["name"])
                if "FailureTarget" in kinds and all(phase(pod) in ("Failed", "Succeeded") for pod in pods):
                    told = kinds["FailureTarget"]
                    self._store.update("jobs", name, _with_condition("Failed", told["reason"], told["message"]))
            elif len(failed) > spec["backoffLimit"]:
                words = "Job has reached the specified backoff limit"
                self._store.update("jobs", name, _with_condition("FailureTarget", "BackoffLimitExceeded", words))
            elif sum(phase(pod) == "Succeeded" for pod in pods) == spec["completions"]:
                self._store.update("jobs", name, _with_condition("Complete", "CompletionsReached", "all are done"))
            else:
                self._make_pods(job, pods)

    def _make_pods(self, job: Object, pods: list[Object]) -> None:
        name = job["metadata"]["name"]
        there = {pod["metadata"]["annotations"][INDEX] for pod in pods}
        for index in map(str, range(job["spec"]["completions"])):
            if index in there:
                continue
            pod = copy.deepcopy(job["spec"]["template"])
            meta = pod.setdefault("metadata", {})
            meta["generateName"] = f"{name}-{index}-"
            meta.setdefault("labels", {})[JOB_NAME] = name
            meta.setdefault("annotations", {})[INDEX] = index
            meta["ownerReferences"] = [_owner(job)]
            pod["spec"]["hostname"] = f"{name}-{index}"
            assert len(pod["spec"]["hostname"]) <= 63
            assert len(meta["generateName"]) + 5 <= 63
            pod["status"] = {"phase": "Pending", "conditions": []}
            try:
                if self.pod_refusal and len(self._store.find("pods")) >= self.pods_allowed:
                    raise Refused(f'pods "{name}-{index}" is forbidden: {self.pod_refusal}')
                self._store.create("pods", pod)
            except Refused as error:
                warn(self._store, name, "FailedCreate", f"Error creating: {error.message}")


def warn(store: Store, name: str, reason: str, message: str) -> None:
    """Records a Warning about the object of that name, once."""
    if store.find("events", fields=f"involvedObject.name={name}"):
        return
    event = {
        "metadata": {"generateName": f"{name}."},
        "involvedObject": {"name": name},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": datetime.now(UTC).isoformat(),
    }
    store.create("events", event)


def job_set_of(train: Object, runtime: Object) -> Object:
    """What Kubeflow Trainer makes of a TrainJob and its runtime; as in its torch and jobset plugins."""
    name, trainer = train["metadata"]["name"], train["spec"]["trainer"]
    assert runtime["spec"]["mlPolicy"]["torch"] == {}
    spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
    (job,) = spec["replicatedJobs"]
    assert job["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    for patch in train["spec"].get("runtimePatches", ()):
        (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        assert replicated["name"] == job["name"] == "node"
        _merge(job["template"], replicated["template"])
    job["template"]["spec"] |= {"parallelism": trainer["numNodes"], "completions": trainer["numNodes"]}
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "node"
    assert not any(variable["name"].startswith("PET_") for variable in trainer["env"]), "Trainer's admission refuses it"
    container |= {key: trainer[key] for key in ("image", "command")} | {"resources": trainer["resourcesPerNode"]}
    processes = trainer["numProcPerNode"] if trainer["resourcesPerNode"].get("requests") else 1
    torchrun = [
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(processes)},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29500"},
    ]
    _merge(container, {"env": trainer["env"] + torchrun})
    spec["network"] = {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name} | spec.get(
        "network", {}
    )
    meta = {"name": name, "ownerReferences": [_owner(train)]}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": meta, "spec": spec}


def _merge(target: Object, patch: Mapping[str, Any]) -> None:
    """A strategic merge, as far as pods need it: lists of named things by name, others replaced."""
    for key, value in patch.items():
        if isinstance(value, Mapping):
            _merge(target.setdefault(key, {}), value)
        elif isinstance(value, list) and key in ("containers", "volumes", "env", "volumeMounts"):
            by = "mountPath" if key == "volumeMounts" else "name"
            places = {item[by]: item for item in target.setdefault(key, [])}
            for item in value:
                if item[by] not in places:
                    target[key].append(copy.deepcopy(item))
                elif key in ("env", "volumes"):
                    places[item[by]] |= item
                else:
                    _merge(places[item[by]], item)
        else:
            target[key] = copy.deepcopy(value)


def _conditions(made: Object | None) -> dict[str, Object]:
    found = (made or {}).get("status", {}).get("conditions") or ()
    return {condition["type"]: condition for condition in found if condition["status"] == "True"}


def _with_condition(kind: str, reason: str, message: str) -> Callable[[Object], None]:
    def change(made: Object) -> None:
        conditions = made.setdefault("status", {}).setdefault("conditions", [])
        if kind not in _conditions(made):
            conditions.append({"type": kind, "status": "True", "reason": reason, "message": message})

    return change


def _owner(made: Object) -> Object:
    return {
        "apiVersion": made["apiVersion"],
        "kind": made["kind"],
        "name": made["metadata"]["name"],
        "uid": made["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
