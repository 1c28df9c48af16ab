"""``hotswap serve`` and ``hotswap chat``: parse, then import what does the work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from server.command_line import load

EXIT_USAGE = 2


def serve(argv: Sequence[str]) -> int:
    """Serve a base and its adapters; returns the exit code. Our own errors are raised for the caller to print."""
    try:
        config = load(argv)
    except ValueError as error:
        print(f"hotswap serve: {error} (see hotswap serve --help)", file=sys.stderr)
        return EXIT_USAGE
    from server.serving import run

    return run(config)


def chat(argv: Sequence[str]) -> int:
    """Talk to a server in the terminal; returns the exit code."""
    from server.terminal_chat import main

    return main(argv)
