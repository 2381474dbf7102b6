"""`python -m rlaif.judge --config FILE`."""

from __future__ import annotations

import sys

from rlaif.judge.settings import JudgeSettings
from rlaif.runtime.settings import settings_from_command_line


def main() -> int:
    settings = settings_from_command_line(JudgeSettings, program="rlaif.judge")
    from rlaif.judge.process import make_service
    from rlaif.runtime.server import run

    return run(make_service(settings), settings.listen)


if __name__ == "__main__":
    sys.exit(main())
