"""Processes that work on what nobody vouches for: how they begin, within bounds that the system keeps."""

from __future__ import annotations

import argparse
import math
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

_MEBIBYTE = 1 << 20


def run_worker(
    serve: Callable[[socket.socket, argparse.Namespace], int],
    description: str | None,
    argv: Sequence[str] | None,
    counts: Mapping[str, str] | None = None,
) -> int:
    """``serve`` one end of a socket pair within the bounds of the command line; ``counts`` are flags of its own.

    Signals are the parent's business: it ends when the other end of the socket closes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fd", type=int, required=True, help="our end of a socket pair")
    parser.add_argument("--megabytes", type=int, required=True, help="address space")
    parser.add_argument("--seconds", type=float, required=True, help="computing time of one job")
    for flag, text in (counts or {}).items():
        parser.add_argument(flag, type=int, required=True, help=text)
    options = parser.parse_args(argv)
    confine(options.megabytes)
    with socket.socket(fileno=options.fd) as sock:
        return serve(sock, options)


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
