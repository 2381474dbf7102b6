"""Engine on vLLM. Only `engine` and what it imports need vLLM; nothing is imported here."""
