"""`python -m rlaif_pipelines.playground --out DIR`: the playground's models from nothing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Parses the arguments, then imports what is heavy."""
    parser = argparse.ArgumentParser(prog="python -m rlaif_pipelines.playground", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for policy/, judge/ and playground.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole build")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the weights depend on it")
    arguments = parser.parse_args()

    from rlaif_pipelines.playground.build import build

    record = build(arguments.out, seed=arguments.seed, threads=arguments.threads)
    json.dump(record, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
