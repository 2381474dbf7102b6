"""The command line of training: settings are checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rlaif.core.errors import InvalidInputError, RlaifError, SettingsError
from rlaif.runtime.settings import load_settings
from rlaif_pipelines.training.config.example import example
from rlaif_pipelines.training.config.verbs import SETTINGS
from rlaif_pipelines.training.errors import GuardError
from rlaif_pipelines.training.termination import tell_termination

_EPILOG = """\
A configuration of a reward model, reward.yaml:

  out: runs/reward           # the results
  policy: models/base        # folder or URI of the model to start from
  labels: labels.jsonl       # pairs with the judge's probability
  optimizer: {learning_rate: 1.0e-5}
  engine: {device: cuda, precision: bfloat16, zero_stage: 2}

  python -m rlaif_pipelines.training reward --config reward.yaml
  torchrun --nproc-per-node 2 -m rlaif_pipelines.training reward --config reward.yaml --set engine.zero_stage=3
  python -m rlaif_pipelines.training reward --example     # every setting, its default and what it means

Results: OUT/model, a Hugging Face folder (OUT/adapter too with engine.lora), OUT/training.json with what it is made of
and how good it is, OUT/metrics.jsonl, OUT/plots, OUT/checkpoints. Started again, it goes on from its last checkpoint.

Exit codes: 0 done, 1 failed, 2 wrong input or settings, 3 stopped by a guard, 130 interrupted."""

DONE, FAILED, WRONG_INPUT, GUARDED, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str]) -> int:
    """Runs one training and returns its exit code: done, failed, wrong input, stopped by a guard or interrupted."""
    # Read when torch is loaded. Threads that spin while they wait make a step many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    options = _parse(arguments)
    if options.example:
        sys.stdout.write(example(SETTINGS[options.verb]))
        return DONE
    try:
        settings = load_settings(SETTINGS[options.verb], options.config, options.overrides)
        importlib.import_module(f"rlaif_pipelines.training.{options.verb}").run(settings)
    except GuardError as stop:
        return _say(stop.message, GUARDED)
    except (InvalidInputError, SettingsError) as error:
        return _say(error.message, WRONG_INPUT)
    except RlaifError as error:
        return _say(error.message, FAILED)
    except OSError as error:
        return _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the traceback is for the log, the sentence for who started this
        traceback.print_exc()
        return _say(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}", FAILED)
    return DONE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlaif_pipelines.training",
        description="Trains one model and ends.\n\n"
        + "\n".join(f"  {verb:<8} {model.__doc__}" for verb, model in SETTINGS.items()),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=sorted(SETTINGS))
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, JSON or YAML")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting, dotted key"
    )
    parser.add_argument("--example", action="store_true", help="print all settings of the verb as YAML, and end")
    options = parser.parse_args(arguments)
    if options.config is None and not options.example:
        parser.error("--config FILE is required; --example prints one")
    return options


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    tell_termination(code, sentence)
    return code
