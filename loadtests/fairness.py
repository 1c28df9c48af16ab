"""What a flood to one adapter costs somebody who asks another one, fairly scheduled and first come first served.

    python -m loadtests.fairness --adapter quiet=DIR --adapter flood=DIR

starts ``hotswap serve`` twice. The quiet one sends one request after the other, alone and then beside ``--streams``
that never pause. The exit code is 1 when something failed, or when the flood costs more than ``--bar`` times the
latency alone where scheduling is fair.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from loadtests.client import Outcome, Target, open_session
from loadtests.load import Driver, Until
from loadtests.soak.server import Server
from loadtests.stats import output_tokens, ttft
from loadtests.workloads import Call, calls

SCHEDULINGS = ("fair", "fcfs")
HEAD = ("scheduling", "quiet one", "requests", "latency mean / p50 / max ms", "TTFT p50 ms", "inter-token p50 ms",
        "over alone", "flood tok/s")  # fmt: skip


@dataclass
class Phase:
    """What the quiet one saw, and what others had meanwhile. ``ratio``: its mean latency over that alone."""

    scheduling: str
    title: str
    outcomes: list[Outcome]
    flood_tokens_a_second: float = 0.0
    ratio: float = 1.0
    errors: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Seconds from request to last byte."""
        return statistics.mean(outcome.end - outcome.start for outcome in self.outcomes)

    def row(self) -> list[str]:
        """A line of the table."""
        seconds = [outcome.end - outcome.start for outcome in self.outcomes]
        between = [(o.end - o.start - ttft(o)) / max(output_tokens(o) - 1, 1) for o in self.outcomes]
        return [
            self.scheduling,
            self.title,
            str(len(self.outcomes)),
            " / ".join(f"{1e3 * x:.0f}" for x in (self.mean, statistics.median(seconds), max(seconds))),
            f"{1e3 * statistics.median(map(ttft, self.outcomes)):.0f}",
            f"{1e3 * statistics.median(between):.1f}",
            f"{self.ratio:.2f}",
            f"{self.flood_tokens_a_second:.0f}" if self.flood_tokens_a_second else "-",
        ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings of one invocation; exits with code 2 and a message on a bad one."""
    parser = argparse.ArgumentParser(prog="loadtests.fairness", description="What a flood costs a quiet neighbour.")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR", help="quiet=DIR and flood=DIR")
    parser.add_argument("--serve", default="", help="more flags of hotswap serve, as one text")
    parser.add_argument("--scheduling", choices=SCHEDULINGS, action="append", help="default: each in turn")
    parser.add_argument("--streams", type=int, default=64, help="of the flood (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--bar", type=float, default=2.0, help="most times the latency alone (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("loadtest-out"))
    args = parser.parse_args(argv)
    if {text.partition("=")[0] for text in args.adapter} != {"quiet", "flood"}:
        parser.error("give --adapter quiet=DIR and --adapter flood=DIR (python -m benchmarks.make_adapters makes some)")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and write it; 0 when the bar is met and nothing failed."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    phases = [phase for how in args.scheduling or SCHEDULINGS for phase in asyncio.run(_measure(args, how))]
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *(phase.row() for phase in phases))]
    print("\n".join(lines))
    kept: list[dict[str, Any]] = [dict(zip(HEAD, phase.row(), strict=True)) for phase in phases]
    (args.out / "fairness.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    errors = [error for phase in phases for error in phase.errors]
    slow = [phase for phase in phases if phase.scheduling == "fair" and phase.ratio > args.bar]
    for problem in [*errors[:5], *(f"{p.ratio:.2f} times the latency alone, the bar is {args.bar:g}" for p in slow)]:
        print(f"loadtests.fairness: {problem}", file=sys.stderr)
    return 1 if errors or slow else 0


async def _measure(args: argparse.Namespace, scheduling: str) -> list[Phase]:
    flags = [part for adapter in args.adapter for part in ("--adapter", adapter)]
    flags += ["--scheduling", scheduling, "--no-prefix-caching", *args.serve.split()]
    server = await Server.start(flags, args.out / f"{scheduling}.log")
    try:
        target = Target(server.url, max_tokens=args.max_tokens, ignore_eos=True)
        async with open_session(target) as session:
            return await _phases(args, scheduling, Driver(session, target))
    finally:
        await server.stop()


async def _phases(args: argparse.Namespace, scheduling: str, driver: Driver) -> list[Phase]:
    until = Until(seconds=args.seconds)
    await driver.closed_loop(_calls(args, "quiet", 0), 1, Until(requests=4))
    alone = Phase(scheduling, "alone", await driver.closed_loop(_calls(args, "quiet", 1), 1, until))
    flood = Flood(driver.session, driver.target, _calls(args, "flood", 2))
    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(flood.stream()) for _ in range(args.streams)]
        await asyncio.wait_for(flood.running.wait(), 120)
        before, begin = flood.tokens, asyncio.get_running_loop().time()
        beside = Phase(scheduling, f"beside {args.streams} streams", [])
        beside.outcomes = await driver.closed_loop(_calls(args, "quiet", 3), 1, until)
        beside.flood_tokens_a_second = (flood.tokens - before) / (asyncio.get_running_loop().time() - begin)
        for stream in streams:
            stream.cancel()
    beside.ratio = beside.mean / alone.mean
    beside.errors = [f"{o.error}: {o.detail}" for o in (*alone.outcomes, *beside.outcomes, *flood.failed) if o.error]
    return [alone, beside]


def _calls(args: argparse.Namespace, model: str, run: int) -> Iterator[Call]:
    return calls([model], "identical", prompt_tokens=args.prompt_tokens, seed=(7, run))


class Flood:
    """Streams that never pause. ``running`` is set once as many answers have ended as a few of them make."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, source: Iterator[Call]) -> None:
        self.tokens = 0
        self.failed: list[Outcome] = []
        self.running = asyncio.Event()
        self._driver = Driver(session, target, self._done)
        self._source = source
        self._ended = 0

    async def stream(self) -> None:
        """One request after the other, until cancelled."""
        await self._driver.closed_loop(self._source, 1, Until(seconds=1e9))

    def _done(self, outcome: Outcome) -> None:
        self.tokens += output_tokens(outcome)
        self._ended += 1
        if outcome.error:
            self.failed.append(outcome)
        if self._ended >= 8:
            self.running.set()


if __name__ == "__main__":
    sys.exit(main())
