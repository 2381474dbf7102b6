"""What vLLM's workers can do for us beside their own: read new weights, all of them."""

from __future__ import annotations

import logging
from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

QUALIFIED_NAME = f"{__name__}.WeightsReader"


class WeightsReader:
    """Mixed into vLLM's worker class, whose methods it calls."""

    reload_weights: Any
    model_runner: Any

    def read_folder(self, folder: str) -> None:
        """Puts the weights of a model folder in place of those there; the caller has seen that it holds them all."""
        # It warns at each reload of layers that never have weights in a file.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        self.reload_weights(weights_path=folder)
        # A head tied to the embeddings gets no weights of its own, so vLLM does not pack it anew for the CPU's kernels:
        # it would go on with the old weights.
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead) and isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
                layer.quant_method.process_weights_after_loading(layer)
