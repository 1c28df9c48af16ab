"""Becomes another program, without what that must not have: ``python -m server.fine_tuning.launcher ... -- ARGV``.

It waits for whoever still has the lock of the folder, ends with its parent, gives way to all else on the machine, and
keeps to some cores and to so much memory. Imports nothing of ours: it is to start at once.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

NICENESS = 19
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> None:
    """Never returns."""
    at = list(argv).index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--lock", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--cores", type=int, default=0)
    parser.add_argument("--data-bytes", type=int, default=0)
    args = parser.parse_args(list(argv[:at]))
    command = list(argv[at + 1 :])
    _end_with(args.parent)
    lock = os.open(args.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # a run whose server was killed may live on for a moment
    os.set_inheritable(lock, True)  # it is held until the program ends
    _give_way()
    if args.cores:
        with suppress(AttributeError, OSError):  # not on every system
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
    if args.data_bytes:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (args.data_bytes, args.data_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (ionice := shutil.which("ionice")) is not None:
        command = [ionice, "-c", "3", *command]
    os.execvp(command[0], command)


def _give_way() -> None:
    """Have what nobody else wants of the cores.

    Linux shares them between sessions first, which this is one of, and only within each by the niceness of processes:
    see autogroups in sched(7).
    """
    os.nice(NICENESS)
    with suppress(AttributeError, OSError):  # whoever else wakes up has the core at once
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as group:
        group.write(str(NICENESS))


def _end_with(parent: int) -> None:
    """Let the kernel, where it can, kill this process when its parent has gone."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it has gone already


if __name__ == "__main__":
    main(sys.argv[1:])
