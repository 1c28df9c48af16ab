"""``hotswap methods``: what can be trained, from the settings themselves. Exit codes: 0 done, 1 unknown, 2 usage."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.commands.common import guarded


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
    from trainer.config.keys import MethodDescription, describe_method, describe_methods

    found: list[MethodDescription] = [describe_method(args.name)] if args.name else describe_methods()
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


def _one(method: Any) -> str:
    width = max((len(setting.key) for setting in method.settings), default=0)
    type_width = max((len(setting.type) for setting in method.settings), default=0)
    settings = [f"  {s.key:<{width}}  {s.type:<{type_width}}  {s.default}".rstrip() for s in method.settings]
    return "\n".join(
        [
            f"{method.name}: {method.summary}",
            *([method.details] if method.details else []),
            "",
            *(["settings, with what they may be and their defaults:", *settings] if settings else ["no settings"]),
            "",
            f"learning rate {method.learning_rate} unless training.learning_rate says otherwise",
            f"on bases quantized as {', '.join(method.quantized)}",
        ]
    )


def _all(methods: list[Any]) -> str:
    width = max(len(method.name) for method in methods)
    rows = [f"{'method':<{width}}  {'rate':>6}  {'bases':<13}  what it does"]
    for method in methods:
        rows.append(f"{method.name:<{width}}  {method.learning_rate:>6}  {_bases(method)}  {method.summary}")
    return "\n".join([*rows, "", "all settings of one: hotswap methods NAME; what it takes: hotswap plan"])


def _bases(method: Any) -> str:
    words = "all" if len(method.quantized) == 6 else ", ".join(method.quantized)
    return f"{words:<13}"
