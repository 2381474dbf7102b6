"""Writes the chart's dashboards and rules; with --rules the rules alone, into another folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from monitoring.files import generated_files, rule_files
from monitoring.timing import Timing


def main() -> None:
    """Writes what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m monitoring", description=__doc__)
    parser.add_argument("--rules", type=Path, metavar="FOLDER", help="write the rules there instead, and no dashboards")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies every window and wait, for trying rules within a minute"
    )
    options = parser.parse_args()
    if options.rules is None and options.scale != 1.0:
        parser.error("--scale is for trying: name a folder with --rules, the chart's own rules stay as they are")
    files = generated_files()
    if options.rules is not None:
        files = {options.rules / name: text for name, text in rule_files(Timing(options.scale)).items()}
    else:
        for path in {path.parent for path in files}:
            for old in set(path.glob("*")) - files.keys():
                old.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
