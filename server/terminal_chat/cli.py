"""The program: reads lines, also from a pipe; then it prints the answers and nothing else. Imports no model code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from server.terminal_chat.client import ChatClient, ChatError
from server.terminal_chat.session import HELP, Session, check_distinct


def main(argv: Sequence[str]) -> int:
    """Run the program; returns the exit code."""
    options = _parser().parse_args(list(argv))
    client = ChatClient(options.url, options.api_key, options.max_tokens, options.temperature)
    with contextlib.closing(client):
        try:
            models = _chosen(client, options.model)
        except ChatError as error:
            sys.stderr.write(f"hotswap chat: {error}\n")
            return 1
        return _talk(client, models, options)


def _chosen(client: ChatClient, names: list[str] | None) -> list[str]:
    """Whom to talk to: the base, unless ``names`` are given. Raises ChatError."""
    models = client.models()
    if not models:
        raise ChatError("the server has no models")
    check_distinct(names or [])
    return names or models[:1]


def _talk(client: ChatClient, models: list[str], options: argparse.Namespace) -> int:
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    session = Session(client, models, options.system, _flushing(sys.stdout), tty=tty)
    if tty:
        names = " and ".join(models)
        sys.stdout.write(f"talking to {names} at {options.url}; /help lists the commands, Ctrl-D leaves\n")
    _read_lines(session)
    return 1 if session.failed and not tty else 0


def _read_lines(session: Session) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and history

    while True:
        try:
            if not session.take(input(session.prompt)):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")


def _flushing(stream: Any) -> Callable[[str], None]:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap chat",
        description="Talk to a server in the terminal, to one model or to several side by side.",
        epilog="Inside:\n" + HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default %(default)s)")
    parser.add_argument(
        "--model", "--adapter", metavar="NAME", action="append",
        help="base or adapter (default: the base); several are shown side by side",
    )  # fmt: skip
    parser.add_argument("--api-key", default=os.environ.get("HOTSWAP_API_KEY"), help="default: $HOTSWAP_API_KEY")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (default: what fits)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest (default 1)")
    return parser
