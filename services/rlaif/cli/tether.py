"""Run a module that ends when its parent does: `python -m rlaif.cli.tether PARENT_PID MODULE [ARGUMENT…]`.

The kernel sends the signal, so it works when the parent is killed with -9. The child asks for it itself: asking
between fork and exec would run Python in a forked copy of a process with threads.
"""

from __future__ import annotations

import ctypes
import gc
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent_pid: int) -> None:
    """Have the kernel end this process when its parent ends; does nothing where there is no prctl."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before we asked
        os._exit(1)


def main() -> None:
    """Become the module named on the command line."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent_pid)
    # A service's libraries make objects by the hundred thousand, none of them garbage: a tenth of its start.
    gc.set_threshold(50_000, 10, 10)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
