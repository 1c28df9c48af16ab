"""``hotswap serve`` and ``hotswap chat``: parse, then import what does the work."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from server.command_line import load
from server.errors import OpenServerError

EXIT_USAGE = 2


def serve(argv: Sequence[str]) -> int:
    """Serve a base and its adapters; returns the exit code. Our own errors are raised for the caller to print."""
    try:
        config = load(argv)
    except ValueError as error:
        print(f"hotswap serve: {error} (see hotswap serve --help)", file=sys.stderr)
        return EXIT_USAGE
    with _interrupts_end_at_once():
        from server.serving import run
    try:
        return run(config)
    except OpenServerError as error:
        print(f"hotswap serve: {error} (see hotswap serve --help)", file=sys.stderr)
        return EXIT_USAGE


@contextmanager
def _interrupts_end_at_once() -> Iterator[None]:
    """For imports: libraries turn an interrupt amid their own into other errors."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a test's, or ignored for good
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def chat(argv: Sequence[str]) -> int:
    """Talk to a server in the terminal; returns the exit code."""
    from server.terminal_chat.cli import main

    return main(argv)
