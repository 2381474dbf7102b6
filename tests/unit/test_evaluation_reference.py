"""What the base says of completions that another policy wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_fixtures import model_folder as model_folder
from rlaif_pipelines.evaluation.reference import completion_logprobs


def test_completions_have_the_log_probabilities_of_the_model_itself(model_folder: Path) -> None:
    sequences = [((5, 6, 7), (8, 9)), ((5, 11), (12, 13, 14, 15, 16)), ((20,), (21,))]
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    found = completion_logprobs(str(model_folder), sequences)
    for (prompt, completion), logprobs in zip(sequences, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(dim=-1)
        places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        expected = [logits[place, token].item() for place, token in zip(places, completion, strict=True)]
        assert logprobs == pytest.approx(expected, abs=1e-4)
