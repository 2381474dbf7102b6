"""`python -m rlaif.oversight --config FILE`."""

from __future__ import annotations

import sys

from rlaif.oversight.settings import OversightSettings
from rlaif.runtime.settings import settings_from_command_line


def main() -> int:
    settings = settings_from_command_line(OversightSettings, program="rlaif.oversight")
    from rlaif.oversight.process import make_service
    from rlaif.runtime.server import run

    return run(make_service(settings), settings.listen)


if __name__ == "__main__":
    sys.exit(main())
