"""Engine on transformers: any causal language model it can load, on a CPU or a GPU. Imports torch."""

from rlaif.engine.hf.engine import HfEngine as HfEngine
