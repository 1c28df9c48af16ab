"""``hotswap methods``: what can be trained, from the settings themselves. Exit codes: 0 done, 1 unknown, 2 usage."""

from __future__ import annotations

import argparse
from textwrap import indent
from typing import TYPE_CHECKING, Any

from bases.names import QUANTIZATIONS
from trainer.commands.common import guarded
from trainer.tables import aligned

if TYPE_CHECKING:
    from trainer.config.keys import MethodDescription


def methods(argv: list[str]) -> int:
    """Run ``hotswap methods``."""
    parser = argparse.ArgumentParser(
        prog="hotswap methods",
        description="List the training methods, or all settings of one.",
        epilog="a method and its settings in a run: method=lora r=16, or in YAML  method: {type: lora, r: 16}",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show the settings of this method")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return guarded(_methods, parser.parse_args(argv))


def _methods(args: argparse.Namespace) -> int:
    from trainer.config.keys import describe_method, describe_methods

    found = [describe_method(args.name)] if args.name else describe_methods()
    if args.json:
        import json

        import msgspec

        data: Any = msgspec.to_builtins(found[0] if args.name else found)
        print(json.dumps(data, indent=2))
    elif args.name:
        print(_one(found[0]))
    else:
        print(_all(found))
    return 0


def _one(method: MethodDescription) -> str:
    settings = [(setting.key, setting.type, setting.default) for setting in method.settings]
    table = indent(aligned(settings[0], settings[1:], left=(0, 1, 2)), "  ") if settings else ""
    return "\n".join(
        [
            f"{method.name}: {method.summary}",
            *([method.details] if method.details else []),
            "",
            *(["settings, with what they may be and their defaults:", table] if settings else ["no settings"]),
            "",
            f"learning rate {method.learning_rate} unless training.learning_rate says otherwise",
            f"on bases quantized as {', '.join(method.quantized)}",
        ]
    )


def _all(methods: list[MethodDescription]) -> str:
    rows = [(method.name, method.learning_rate, _bases(method), method.summary) for method in methods]
    table = aligned(("method", "rate", "bases", "what it does"), rows, left=(0, 2, 3))
    return f"{table}\n\nall settings of one: hotswap methods NAME; what it takes: hotswap plan"


def _bases(method: MethodDescription) -> str:
    return "all" if len(method.quantized) == len(QUANTIZATIONS) else ", ".join(method.quantized)
