"""What running streams notice of adapters that load: gaps between tokens with and without uploads, in turn.

    python -m benchmarks.adapter_loading --base DIR

Streams are a closed loop over HTTP (``python -m loadtests``, a process of its own). In every other window random LoRA
of ``--megabytes`` are loaded, one after the other without a pause: ``--how cold``, by requests for adapters that are
only stored (two are resident at once), or ``--how upload``, uploaded, verified and deleted. All of it shares this
machine's cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.adapter_memory import linear_sides, upload, write_package
from benchmarks.load_client import run_load
from benchmarks.own_server import OwnServer, own_server

Load = Callable[[int], None]


@dataclass(frozen=True)
class Window:
    """What the streams saw: milliseconds between tokens, tokens a second; and how many adapters were loaded."""

    p50: float
    p99: float
    tok_s: float
    loaded: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    args = _parser().parse_args(argv)
    packages = _packages(args.base, args.out / "adapters", args.megabytes, args.adapters)
    quiet, loading = [], []
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", str(args.base), "--data-dir", folder, "--log-level", "warning", *args.serve.split()]
        if args.how == "cold":
            options += ["--max-resident", "2"]
        with own_server(options, args.out / "server.log") as server:
            load = partial(_upload, server, packages) if args.how == "upload" else _stored(server, packages)
            for number in range(args.rounds):
                quiet.append(_window(server, args.streams, args.seconds, None, seed=number))
                loading.append(_window(server, args.streams, args.seconds, load, seed=number))
                print(quiet[-1], loading[-1], file=sys.stderr, flush=True)
    print(_table(quiet, loading))
    return 0


def _packages(base: Path, out: Path, megabytes: float, count: int) -> list[Path]:
    """LoRA of that weight on every linear map."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    sides = linear_sides(config)
    numbers = config["num_hidden_layers"] * sum(into + out for into, out in sides.values())
    rank = max(1, round(megabytes * 1e6 / 4 / numbers))
    packages = [out / f"r{rank}-{number}" for number in range(count)]
    for number, package in enumerate(packages):
        if not (package / "adapter_config.json").exists():
            write_package(package, config, rank, seed=number, targets=tuple(sides))
    return packages


def _window(server: OwnServer, streams: int, seconds: float, load: Load | None, seed: int) -> Window:
    """Streams for so long, beside one ``load`` after the other if there is any."""
    over, counts = threading.Event(), [0]
    loader = threading.Thread(target=_load_on, args=(load, over, counts))
    loader.start()
    try:
        run = _streams(server, streams, seconds, seed)
    finally:
        over.set()
        loader.join()
    gaps = run["itl_ms"]
    return Window(gaps["p50"], gaps["p99"], run["output_tokens_per_s"], counts[0])


def _load_on(load: Load | None, over: threading.Event, counts: list[int]) -> None:
    while load is not None and not over.is_set():
        load(counts[0])
        counts[0] += 1


def _upload(server: OwnServer, packages: Sequence[Path], number: int) -> None:
    upload(server, "loading", packages[number % len(packages)])
    server.client.delete("/v1/adapters/loading").raise_for_status()


def _stored(server: OwnServer, packages: Sequence[Path]) -> Load:
    """Uploads all; the result asks one of them after the other, which is loaded for that."""
    for number, package in enumerate(packages):
        upload(server, f"a{number}", package)

    def ask(number: int) -> None:
        body = {"model": f"a{number % len(packages)}", "prompt": "It was", "max_tokens": 1}
        server.post("/v1/completions", body)

    return ask


def _streams(server: OwnServer, count: int, seconds: float, seed: int) -> dict[str, Any]:
    base = server.client.get("/v1/models").json()["data"][0]["id"]
    options = ["--concurrency", str(count), "--duration", str(seconds), "--seed", str(seed)]
    options += ["--prompt-tokens", "32", "--max-tokens", "256"]
    run = run_load(server.url, [base], server.key, options)
    if run["errors"]:
        raise RuntimeError(f"some streams failed: {run['errors']}")
    return run


def _table(quiet: Sequence[Window], loading: Sequence[Window]) -> str:
    """Markdown: medians of the windows; the last column is the median of the ratios of neighbouring windows."""
    rows = ["| | alone | beside adapters that load | ratio |", "|---|---|---|---|"]
    for name, figure in (("inter-token p50 ms", "p50"), ("inter-token p99 ms", "p99"), ("tokens/s", "tok_s")):
        before, beside = ([getattr(window, figure) for window in windows] for windows in (quiet, loading))
        ratio = statistics.median(b / a for a, b in zip(before, beside, strict=True))
        rows.append(f"| {name} | {statistics.median(before):.1f} | {statistics.median(beside):.1f} | {ratio:.2f} |")
    rows.append(f"| adapters loaded | | {sum(window.loaded for window in loading)} | |")
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--how", choices=("cold", "upload"), default="cold", help="default: %(default)s")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of an adapter (default: %(default)s)")
    parser.add_argument("--adapters", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--streams", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a window (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each kind (default: %(default)s)")
    parser.add_argument("--serve", default="", help="more options for hotswap serve, as one argument")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of adapters and log")
    return parser


if __name__ == "__main__":
    sys.exit(main())
