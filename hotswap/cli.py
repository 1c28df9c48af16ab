"""The one command: picks the part that does the work, imports only that, and turns its errors into exit codes.

It knows the names of the parts and nothing of what they do. Exit codes: 0 done, 1 an error (one plain line; of one that
is not ours the traceback is kept in a file, and shown where HOTSWAP_DEBUG is set), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version

from hotswap.errors import HotswapError

PROG = "hotswap"
DEBUG = "HOTSWAP_DEBUG"
_LONGEST = 500  # characters of what a foreign error says
EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


@dataclass(frozen=True)
class Command:
    """One subcommand: where its ``(argv) -> exit code`` function lives, and what it does in a few words."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "serve": Command("server.cli", "serve", "serve a base model and its adapters over HTTP"),
    "chat": Command("server.cli", "chat", "talk to a server in the terminal"),
    "init": Command("trainer.commands.init", "init", "ask for data, base and method, and write the file of a run"),
    "train": Command("trainer.commands.train", "train", "train an adapter from a YAML file or from flags"),
    "sweep": Command(
        "trainer.commands.sweep", "sweep", "train with several values of some settings, and rank the runs"
    ),
    "plan": Command("trainer.commands.plan", "plan", "say what a run will take: parameters, memory, time"),
    "methods": Command("trainer.commands.methods", "methods", "list the training methods and their settings"),
    "eval": Command("trainer.commands.eval", "evaluate", "score an adapter by the answers of the serving engine"),
    "data": Command("trainer.commands.data", "main", "check and preview training data; list recipes of known sets"),
    "merge": Command("trainer.commands.merge", "merge", "merge an adapter into a full-precision copy of its base"),
    "publish": Command("trainer.commands.publish", "publish", "upload an adapter into a running server, behind a gate"),
    "rollback": Command("trainer.commands.adapters", "rollback", "let an adapter serve the version before again"),
    "adapters": Command("trainer.commands.adapters", "main", "look at the adapters of a server, and change them"),
    "top": Command("hotswap.top.cli", "main", "show what a server does, by adapter, live in the terminal"),
    "keys": Command("hotswap.keys_cli", "main", "create, list, rotate and revoke API keys; see who did what"),
    "base": Command("hotswap.base_cli", "main", "import, list and locate base models in the local cache"),
    "demo": Command("hotswap.demo.cli", "main", "train, serve and hot-swap adapters end to end, and print a report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hotswap`` with ``argv`` (default: the process's) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else EXIT_USAGE
    if args[0] in ("-V", "--version"):
        print(f"{PROG} {version(PROG)}")
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        print(_unknown(args[0]), file=sys.stderr)
        return EXIT_USAGE
    return _run(command, args[1:])


def _run(command: Command, argv: list[str]) -> int:
    try:
        code = _load(command)(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader left; point stdout elsewhere so that the interpreter's last flush is quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:  # noqa: BLE001 - the last resort: no traceback reaches a user
        from trainer.distributed.launch import leave_error

        line = _line_of(error)
        if not leave_error(line):  # of several processes one speaks
            print(f"{PROG}: {line}", file=sys.stderr)
        return EXIT_ERROR


def _line_of(error: Exception) -> str:
    """What to say of ``error``; of one that is not ours its kind, and where its traceback is kept."""
    from trainer.errors import in_lines

    if isinstance(error, _own_errors()):
        return in_lines(error)
    if os.environ.get(DEBUG):
        raise error
    said = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
    if isinstance(error, OSError) and error.strerror:
        from trainer.files import write_failure

        said = f"{error.filename}: {error.strerror}" if error.filename else write_failure(error)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="hotswap-error-", suffix=".txt", delete=False) as file:
            file.write(f"{PROG} {version(PROG)}\n{''.join(traceback.format_exception(error))}")
    except (OSError, ValueError):
        return f"{said}; set {DEBUG}=1 to see the traceback"
    return f"{said}; the traceback is in {file.name}"


def _load(command: Command) -> Callable[[list[str]], int]:
    function: Callable[[list[str]], int] = getattr(importlib.import_module(command.module), command.function)
    return function


def _own_errors() -> tuple[type[Exception], ...]:
    """The roots of our error trees; evaluated only once something was raised, so that a good start imports nothing."""
    from adapters.errors import AdapterError
    from bases.errors import BaseModelError
    from server.errors import ServerError
    from trainer.errors import TrainerError

    return (HotswapError, AdapterError, BaseModelError, ServerError, TrainerError)


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROG} COMMAND ...\n\n"
        "Serve many fine-tuned adapters on one resident quantized base model, and make them.\n\n"
        f"commands:\n{rows}\n\n"
        f"options:\n  --help     show this, or with a command its own help\n  --version  show the version"
    )


def _unknown(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{PROG}: {name!r} is not a command.{hint} See {PROG} --help."
