"""The command line of the load test, checked."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from loadtests.client import Outcome, Target, list_models, open_session
from loadtests.load import Driver, Until
from loadtests.report import errors_text, table, write_json
from loadtests.samples import NAME, write_samples
from loadtests.stats import summarize
from loadtests.workloads import POPULARITIES, Call, calls, poisson_arrivals

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
    what.add_argument("--fields", type=_fields, default={}, help="more of the body of a model's requests, as JSON:"
                      ' {"l0": {"lora": [{"id": 0, "scale": 1}]}}')  # fmt: skip
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


def _fields(text: str) -> dict[str, dict[str, Any]]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(one, dict) for one in fields.values()):
        raise argparse.ArgumentTypeError("not an object of objects")
    return fields


def _list_of(kind: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    return lambda text: [kind(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load test; 0 when every request was answered, 1 when some failed or the server cannot be reached."""
    args = parse(argv)
    target = Target(
        url=args.url,
        endpoint=args.endpoint,
        api_key=args.api_key,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        ignore_eos=args.ignore_eos,
        timeout_s=args.timeout,
        fields=args.fields,
    )
    try:
        results = asyncio.run(_run(args, target))
    except aiohttp.ClientError as error:
        print(f"loadtests: {args.url} does not answer as an OpenAI-compatible server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return _report(args, target, results)


async def _run(args: argparse.Namespace, target: Target) -> list[tuple[str, list[Outcome]]]:
    async with open_session(target) as session:
        models = await list_models(session, target) if args.models == "all" else args.models.split(",")
        await _warm_up(args, Driver(session, target), models)
        results: list[tuple[str, list[Outcome]]] = []
        for concurrency in args.concurrency or ():
            title = f"closed, concurrency {concurrency}"
            until = _until(args, default_requests=max(8, 2 * concurrency))
            driver = Driver(session, target, _progress(title, until))
            source = _calls(args, models, run=len(results))
            results.append((title, await driver.closed_loop(source, concurrency, until)))
        for rate in args.rate or ():
            title = f"open, {rate:g} a second"
            until = _until(args, default_requests=max(8, int(20 * rate)))
            driver = Driver(session, target, _progress(title, until))
            source = _calls(args, models, run=len(results))
            results.append((title, await driver.open_loop(source, poisson_arrivals(rate, seed=args.seed), until)))
        return results


async def _warm_up(args: argparse.Namespace, driver: Driver, models: list[str]) -> None:
    count = len(models) if args.warmup is None else args.warmup
    source = calls(models, "distinct", prompt_tokens=args.prompt_tokens, seed=(args.seed, 10**6))
    await driver.closed_loop(source, min(4, count), Until(requests=count))


def _calls(args: argparse.Namespace, models: list[str], run: int) -> Iterator[Call]:
    """Each run has prompts of its own: a server that caches prompts must not profit from the run before."""
    seed = (args.seed, run)
    return calls(models, args.adapters, prompt_tokens=args.prompt_tokens, seed=seed, alpha=args.zipf_alpha)


def _until(args: argparse.Namespace, default_requests: int) -> Until:
    requests = args.requests or (None if args.duration else default_requests)
    return Until(requests=requests, seconds=args.duration)


def _progress(title: str, until: Until) -> Callable[[Outcome], None]:
    """Counts answers on one line of a terminal; silent elsewhere."""
    total = f"/{until.requests}" if until.requests else ""
    count = failed = 0

    def done(outcome: Outcome) -> None:
        nonlocal count, failed
        count, failed = count + 1, failed + (outcome.error is not None)
        if sys.stderr.isatty():
            print(f"\r{title}: {count}{total}, {failed} failed ", end="", file=sys.stderr, flush=True)

    return done


def _report(args: argparse.Namespace, target: Target, results: list[tuple[str, list[Outcome]]]) -> int:
    from loadtests.page import report_page
    from loadtests.plot import plot  # matplotlib takes a second that the load need not wait for

    runs: list[dict[str, Any]] = [{"load": title, **summarize(outcomes)} for title, outcomes in results]
    settings = {**vars(args), **dataclasses.asdict(target), "out": str(args.out)}
    del settings["api_key"]
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "report.json", settings, runs)
    text = table(runs)
    (args.out / "report.txt").write_text(text + "\n", encoding="utf-8")
    plot(args.out / "latency.png", results)
    write_samples(args.out, results)
    (args.out / "report.html").write_text(report_page(f"Load on {args.url}", text, results), encoding="utf-8")
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(text)
    print("\ntimes in ms; ttft: to the first text, itl: between texts, e2e: the whole answer")
    print(f"in {args.out}: report.html, report.json, report.txt, latency.png, {NAME}")
    errors = errors_text(runs)
    if errors:
        print(f"loadtests: some requests failed:\n{errors}", file=sys.stderr)
    return 1 if errors else 0
