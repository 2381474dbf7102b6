"""`python -m rlaif.reward --config FILE`."""

from __future__ import annotations

import sys

from rlaif.reward.settings import RewardSettings
from rlaif.runtime.settings import settings_from_command_line


def main() -> int:
    settings = settings_from_command_line(RewardSettings, program="rlaif.reward")
    from rlaif.reward.process import make_service
    from rlaif.runtime.server import run

    return run(make_service(settings), settings.listen)


if __name__ == "__main__":
    sys.exit(main())
