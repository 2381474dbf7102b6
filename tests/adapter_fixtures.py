"""LoRA adapters of tiny models, as training publishes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.runtime.artifacts import folder_digest


def write_adapter(
    folder: Path,
    *,
    base: Path,
    seed: int = 0,
    targets: Sequence[str] = ("q_proj", "v_proj", "down_proj"),
    **config: Any,
) -> Path:
    """An adapter folder whose matrices are random and large enough to change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": list(targets), "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**(values | config)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "base.json").write_text(json.dumps({"digest": folder_digest(base)}))
    return folder


def adapted_model(base: Path, adapter: Path) -> Any:
    """The base with the adapter on it, as peft itself puts it there."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).eval()
