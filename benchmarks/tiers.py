"""Many stored adapters and room for few: throughput under Zipf's law, and what a cold adapter's first token takes.

    python -m benchmarks.tiers --base DIR --names 1000 --budgets 1000,100

Registers that many random LoRA in ``--data-dir`` (those that are there are taken as they are), starts ``hotswap serve``
over it with each budget (``--max-resident``) and puts the same closed loop on it: sixteen of the names in turn, all
resident, then all names drawn by Zipf's law. The stages of cold starts are read from the server's metrics.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adapter_memory import ON_DEVICE, linear_sides, upload, write_package
from benchmarks.load_client import run_load
from benchmarks.own_server import OwnServer, own_server

FEW = 16
STAGES = ("queue", "read", "validate", "copy", "try", "prefill")
_STAGE = re.compile(r'^hotswap_adapter_cold_start_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What one loop saw: tokens a second, seconds to the first token, loads, and milliseconds of cold starts."""

    what: str
    tok_s: float
    ttft_p50: float
    ttft_p99: float
    failed: int
    loads: int
    stages: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    args = _parser().parse_args(argv)
    names = [f"a{number}" for number in range(args.names)]
    register(args, names)
    runs = []
    for budget in (int(text) for text in args.budgets.split(",")):
        with serving(args, budget) as server:
            for _ in range(args.rounds):
                runs.append(measure(server, args, f"{FEW} names, room for {budget}", names[:FEW], "distinct"))
                runs.append(measure(server, args, f"{len(names)} by zipf, room for {budget}", names, "zipf"))
                print(*runs[-2:], sep="\n", file=sys.stderr, flush=True)
    print(table(runs))
    return 0


def register(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Upload what is not there, and say what registered names take."""
    config = json.loads((args.base / "config.json").read_text("utf-8"))
    targets = tuple(linear_sides(config)) if args.all_linear else ("q_proj", "v_proj")
    with serving(args, FEW, "lazy") as server, tempfile.TemporaryDirectory() as folder:
        known = {entry["name"] for entry in server.client.get("/v1/adapters").json()["data"]}
        before, started = server.private_bytes()["api"], time.perf_counter()
        missing = [name for name in names if name not in known]
        for name in missing:
            write_package(Path(folder) / "package", config, args.rank, seed=int(name[1:]), targets=targets)
            upload(server, name, Path(folder) / "package")
        if missing:
            took, grown = time.perf_counter() - started, server.private_bytes()["api"] - before
            each = f"{took / len(missing) * 1e3:.0f} ms and {grown / len(missing) / 1e3:.1f} kB of the API process each"
            print(f"{len(missing)} names registered: {each}", flush=True)


@contextmanager
def serving(args: argparse.Namespace, budget: int, when: str = "eager") -> Iterator[OwnServer]:
    """The server over all names, once it has loaded what it will."""
    options = ["--model", str(args.base), "--data-dir", str(args.data_dir), "--log-level", "warning"]
    options += ["--max-resident", str(budget), "--load-adapters", when, *args.serve.split()]
    started = time.perf_counter()
    with own_server(options, args.out / "server.log") as server:
        names = len(server.client.get("/v1/adapters").json()["data"])
        print(f"ready with {names} names after {time.perf_counter() - started:.1f} s", flush=True)
        while when == "eager" and server.metric("hotswap_adapters_resident", ON_DEVICE) < min(budget, names):
            time.sleep(0.2)
        print(f"loaded after {time.perf_counter() - started:.1f} s", flush=True)
        yield server


def measure(server: OwnServer, args: argparse.Namespace, what: str, names: Sequence[str], popularity: str) -> Run:
    """One loop over ``names``."""
    before, loads = _stages(server), server.metric("hotswap_adapter_cold_loads_total")
    options = ["--adapters", popularity, "--warmup", str(min(len(names), FEW))]
    options += ["--concurrency", str(args.concurrency), "--duration", str(args.seconds)]
    options += ["--prompt-tokens", "32", "--max-tokens", str(args.max_tokens), "--seed", str(args.seed)]
    report = run_load(server.url, names, server.key, options)
    args.seed += 1
    after = _stages(server)
    stages = {}
    for stage in STAGES:
        total, count = (new - old for new, old in zip(after.get(stage, (0, 0)), before.get(stage, (0, 0)), strict=True))
        stages[stage] = 1e3 * total / count if count else 0.0
    return Run(
        what,
        report["output_tokens_per_s"],
        report["ttft_ms"]["p50"],
        report["ttft_ms"]["p99"],
        sum(report["errors"].values()),
        int(server.metric("hotswap_adapter_cold_loads_total") - loads),
        stages,
    )


def _stages(server: OwnServer) -> dict[str, tuple[float, float]]:
    """Seconds and number of cold starts so far, by stage."""
    found: dict[str, dict[str, float]] = {}
    for kind, stage, value in _STAGE.findall(server.client.get("/metrics").text):
        found.setdefault(stage, {})[kind] = float(value)
    return {stage: (values["sum"], values["count"]) for stage, values in found.items()}


def table(runs: Sequence[Run]) -> str:
    """Markdown: each loop, and how its throughput is to that of the sixteen before it."""
    titles = ("", "tokens/s", "ratio", "TTFT p50 ms", "p99", "failed", "cold loads", *(f"{s} ms" for s in STAGES))
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    few = runs[0].tok_s
    for run in runs:
        few = run.tok_s if run.what.startswith(f"{FEW} ") else few
        stages = " | ".join(f"{run.stages[stage]:.1f}" for stage in STAGES)
        rows.append(
            f"| {run.what} | {run.tok_s:.0f} | {run.tok_s / few:.2f} | {run.ttft_p50:.0f} | {run.ttft_p99:.0f} | "
            f"{run.failed} | {run.loads} | {stages} |"
        )
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--names", type=int, default=1000, help="registered adapters (default: %(default)s)")
    parser.add_argument("--budgets", default="1000,100", help="resident ones, a server each (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--all-linear", action="store_true", help="adapt every linear map, not q_proj and v_proj alone")
    parser.add_argument("--concurrency", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a loop (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of loops (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", default="", help="more options for hotswap serve, as one argument")
    parser.add_argument("--data-dir", type=Path, default=Path("bench-out/data"), help="where the names are kept")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the log")
    return parser


if __name__ == "__main__":
    sys.exit(main())
