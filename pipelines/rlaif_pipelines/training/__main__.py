"""`python -m rlaif_pipelines.training <sft|reward|dpo|rl> --config FILE.json`, also under torchrun."""

from __future__ import annotations

import sys

from rlaif_pipelines.training.entry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
