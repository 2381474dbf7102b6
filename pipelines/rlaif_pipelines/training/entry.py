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
from rlaif_pipelines.training.config.verbs import SETTINGS
from rlaif_pipelines.training.errors import GuardError
from rlaif_pipelines.training.termination import tell_termination

DONE, FAILED, WRONG_INPUT, GUARDED, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str]) -> int:
    """Runs one training and returns its exit code: done, failed, wrong input, stopped by a guard or interrupted."""
    # Read when torch is loaded. Threads that spin while they wait make a step many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    parser = argparse.ArgumentParser(prog="rlaif_pipelines.training", description="Trains one model and ends.")
    parser.add_argument("verb", choices=sorted(SETTINGS))
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, JSON or YAML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting")
    options = parser.parse_args(arguments)
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


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    tell_termination(code, sentence)
    return code
