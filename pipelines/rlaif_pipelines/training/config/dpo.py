"""What preference optimisation is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import model_validator

from rlaif_pipelines.training.config.common import NonNegative, Positive, PublishSettings
from rlaif_pipelines.training.config.pairs import PairTraining

PreferenceLoss = Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "simpo"]

BETAS: Final[Mapping[str, float]] = {"sigmoid": 0.1, "sigmoid_norm": 5.0, "ipo": 0.1, "hinge": 0.1, "simpo": 2.0}
"""β where none is given: sums over responses and means over their tokens are of different size."""


class DpoTraining(PairTraining):
    """Policy from soft labels, without a reward model."""

    loss: PreferenceLoss = "sigmoid"
    """sigmoid: DPO; sigmoid_norm: DPO on means over tokens; ipo; hinge; simpo: without a reference."""
    beta: Positive = BETAS["sigmoid"]
    """How dear it is to leave the reference; not given, what suits the loss."""
    target_margin: NonNegative = 1.0
    """γ of SimPO: the lead asked of a response that the label is sure of."""
    sft_weight: NonNegative = 0.0
    """Weight of the preferred response's negative log-likelihood, a token, beside the loss."""
    publish: PublishSettings | None = None
    """Where the result becomes the policy's next version; unset means nowhere."""

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the policy that training starts from."""
        return self.loss != "simpo"

    @property
    def averages_tokens(self) -> bool:
        """Whether the loss takes means over a response's tokens instead of sums."""
        return self.loss in ("sigmoid_norm", "ipo", "simpo")

    @model_validator(mode="before")
    @classmethod
    def _beta_of_the_loss(cls, given: Any) -> Any:
        loss = given.get("loss") if isinstance(given, Mapping) else None
        return {"beta": BETAS[loss], **given} if isinstance(loss, str) and loss in BETAS else given
