"""Bounds that a process sets itself before it works on what nobody vouches for, kept by the system."""

from __future__ import annotations

import math
import os
import resource

_MEBIBYTE = 1 << 20


def confine(megabytes: int) -> None:
    """Leave this process ``megabytes`` of address space, no files to write, no processes to start, and others first."""
    os.nice(10)
    limits = {
        resource.RLIMIT_AS: megabytes * _MEBIBYTE,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def allow_seconds(seconds: float) -> None:
    """End this process when it has computed that much longer, to the next whole second."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime + seconds), hard))
