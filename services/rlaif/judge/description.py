"""Which judge this is, for callers who need to know what decides their labels."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.core.calibration import Calibration
from rlaif.core.canonical import digest
from rlaif.core.template import JudgeTemplate
from rlaif.engine.protocol import Engine
from rlaif.judge.judging import Judge
from rlaif.judge.panel import Panel
from rlaif.judge.settings import JudgeSettings
from rlaif.v1 import judge_service_pb2, provenance_pb2


class Description:
    """Answers GetJudge."""

    def __init__(
        self,
        engine: Engine,
        *,
        judge: Judge,
        template: JudgeTemplate,
        calibrations: Sequence[Calibration],
        panel: Panel | None,
        settings: JudgeSettings,
    ) -> None:
        self._engine = engine
        self._judge = judge
        self._template = template
        self._calibrations = sorted(calibration.name for calibration in calibrations)
        self._panel = panel
        self._settings = settings

    async def __call__(self) -> judge_service_pb2.GetJudgeResponse:
        """The judge as it is now."""
        identity = self._engine.identity
        return judge_service_pb2.GetJudgeResponse(
            model=provenance_pb2.ModelRef(uri=identity.uri, digest=identity.digest, version=identity.version),
            template=self._template.name,
            template_sha256=self._template.sha256,
            context_length_tokens=self._engine.context_length,
            panel=self._panel_judges(),
            calibrations=self._calibrations,
            fingerprint=await self._fingerprint(),
            num_verdict_samples=(await self._judge.fingerprint()).num_verdict_samples,
        )

    async def _fingerprint(self) -> str:
        deciding = await self._judge.fingerprint()
        if not deciding.repeatable:
            return ""
        settings = self._settings
        return digest(
            [
                deciding.model_digest,
                deciding.context_length,
                self._template.sha256,
                self._template.reasoning_sha256,
                list(deciding.panel),
                self._calibrations,
                settings.reasoning and settings.reasoning.model_dump(),
                settings.min_verdict_mass,
                settings.abstain_on_injection,
                *([deciding.num_verdict_samples] if deciding.num_verdict_samples else []),
            ]
        )

    def _panel_judges(self) -> list[judge_service_pb2.PanelJudge]:
        found = []
        for judge in self._panel.judges if self._panel is not None else ():
            message = judge_service_pb2.PanelJudge(judge=judge.name)
            if judge.state is not None:
                message.model.CopyFrom(
                    provenance_pb2.ModelRef(uri=judge.state.model_uri, digest=judge.state.model_digest)
                )
            found.append(message)
        return found
