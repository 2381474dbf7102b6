"""`python -m rlaif.sampler --config FILE`."""

from __future__ import annotations

import sys

from rlaif.runtime.settings import settings_from_command_line
from rlaif.sampler.settings import SamplerSettings


def main() -> int:
    settings = settings_from_command_line(SamplerSettings, program="rlaif.sampler")
    from rlaif.runtime.server import run
    from rlaif.sampler.process import make_service

    return run(make_service(settings), settings.listen)


if __name__ == "__main__":
    sys.exit(main())
