"""How a command finds the server that it works on: the flags for its address, its admin key and how long to wait."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.serving.client import AdminClient

URL, ADMIN_KEY = "HOTSWAP_URL", "HOTSWAP_ADMIN_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
_SECONDS = 600.0


def add_server_options(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add them. ``again``: ``parser`` is of a subcommand, before which they may stand too."""
    absent = argparse.SUPPRESS

    def default(value: object) -> object:
        return absent if again else value

    group = parser.add_argument_group("server")
    group.add_argument(
        "--url", "--server", dest="server", metavar="URL", default=default(os.environ.get(URL) or DEFAULT_URL),
        help=f"default: ${URL}, else {DEFAULT_URL}",
    )  # fmt: skip
    group.add_argument("--admin-key", metavar="KEY", default=default(None), help=f"default: ${ADMIN_KEY}")
    group.add_argument(
        "--admin-key-file", "--key-file", type=Path, metavar="FILE", default=default(None),
        help="the key is the first line of FILE, so that no list of processes shows it",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", default=default(_SECONDS),
        help=f"of every call (default: {_SECONDS:g})",
    )  # fmt: skip


def admin_key(args: argparse.Namespace) -> str | None:
    """The key that ``args`` or the environment name. Raises ConfigError for a file that holds none."""
    if args.admin_key is not None and args.admin_key_file is not None:
        raise ConfigError("give --admin-key or --admin-key-file, not both")
    if args.admin_key_file is None:
        given: str | None = args.admin_key
        return given or os.environ.get(ADMIN_KEY)
    try:
        text: str = args.admin_key_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"--admin-key-file {args.admin_key_file} cannot be read: {reason}") from error
    key = next((line.strip() for line in text.split("\n") if line.strip()), None)
    if key is None:
        raise ConfigError(f"--admin-key-file {args.admin_key_file} holds no key; write one line with it")
    return key


def admin_client(args: argparse.Namespace) -> AdminClient:
    """The client of that server. Raises ConfigError."""
    from trainer.serving.client import AdminClient

    return AdminClient(args.server, admin_key(args), timeout=args.timeout)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return seconds
