"""The command line of the load test, checked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from loadtests.workloads import POPULARITIES

Number = TypeVar("Number", int, float)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings of one invocation; exits with code 2 and a message on a bad one."""
    parser = argparse.ArgumentParser(prog="loadtests", description="Load on any OpenAI-compatible server.")
    where = parser.add_argument_group("server")
    where.add_argument("--url", default="http://127.0.0.1:8000", help="with or without /v1 (default %(default)s)")
    where.add_argument("--api-key", help="sent as a bearer token")
    where.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    where.add_argument("--timeout", type=_above_zero, default=600.0, help="seconds for one request (default 600)")
    what = parser.add_argument_group("requests")
    what.add_argument("--models", default="all", help="names separated by commas; all: those the server lists")
    what.add_argument("--adapters", choices=POPULARITIES, default="distinct", help="which of --models each request asks"
                      " for: the first, in turn, drawn evenly, or drawn by Zipf's law (default distinct)")  # fmt: skip
    what.add_argument("--zipf-alpha", type=_above_zero, default=1.0, help="skew of zipf (default 1)")
    what.add_argument("--prompt-tokens", type=_positive, default=128, help="about (default 128)")
    what.add_argument("--max-tokens", type=_positive, default=64, help="of output (default 64)")
    what.add_argument("--ignore-eos", action="store_true", help="always make --max-tokens tokens, where the server can")
    what.add_argument("--temperature", type=float, default=0.0)
    load = parser.add_argument_group("load")
    load.add_argument("--concurrency", type=_list_of(_positive), help="closed loop: one run each, as in 1,8,32")
    load.add_argument("--rate", type=_list_of(_above_zero), help="open loop: Poisson arrivals a second, as in 0.5,2")
    load.add_argument("--requests", type=_positive, help="of each run (default 2 x concurrency, at least 8)")
    load.add_argument("--duration", type=_above_zero, help="seconds during which a run starts requests")
    load.add_argument("--warmup", type=int, help="requests before the first run, not counted (default: one a model)")
    load.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("loadtest-out"), help="folder of the results")
    args = parser.parse_args(argv)
    if not args.concurrency and not args.rate:
        args.concurrency = [1]
    return args


def _positive(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _list_of(kind: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    return lambda text: [kind(part) for part in text.split(",")]
