"""Methods side by side on real data: each is trained by ``hotswap train`` and scored by ``hotswap eval`` on each set.

    python -m benchmarks.method_results --data FOLDER --sets snips,banking77 --methods lora,prefix --out results

Every method sees the same rows in the same order for the same number of steps, at a learning rate of its own for such
short runs. What was done is kept in OUT/results.jsonl and not done again; OUT/results.md is the table. The published
sets are read from FOLDER/NAME and not part of the project.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TRAINED = {
    "trainable_parameters": "trainable",
    "cpu_seconds": "training, CPU s",
    "peak_memory_mb": "peak MB",
}
_HEAD = ("set", "method", "scores (95 % interval)", *_TRAINED.values(), "served tokens/s")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line for each run; sets in the order in which they come."""
    order = {name: at for at, name in enumerate(dict.fromkeys(row["set"] for row in rows))}
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    for row in sorted(rows, key=lambda row: order[row["set"]]):
        lines.append("| " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    trained, candidate = row["trained"], row["scored"]["candidate"]
    scores = "; ".join(
        f"{name} {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
        for name, score in candidate["scores"].items()
    )
    return [
        row["set"],
        row["method"],
        scores,
        *(f"{trained[key]:,.0f}" if key in trained else "" for key in _TRAINED),
        f"{candidate['tokens_per_second']:,.0f}",
    ]


_TIMEOUT = "3600"  # seconds of one answer: an untrained base writes as many tokens as it may
BASE = "base"  # the untrained base among the methods


@dataclass(frozen=True)
class TaskSet:
    """A published set: ``steps`` of ``batch`` rows are the small budget, about 100,000 tokens."""

    steps: int
    batch: int = 4


SETS = {
    "snips": TaskSet(300),
    "banking77": TaskSet(400),
    "sqlqa": TaskSet(220),
    "geography": TaskSet(207),
    "chatglm_spo": TaskSet(120, batch=2),
}
# Rates for a few hundred steps: above most presets, which must also hold for long runs (docs/training/presets.md).
METHODS = {
    "lora": ("method=lora", "training.learning_rate=1e-3"),
    "dora": ("method=lora", "method.use_dora=true", "training.learning_rate=1e-3"),
    "prefix+projection": ("method=prefix", "training.learning_rate=3e-3"),
    "prefix": ("method=prefix", "method.projection=false", "training.learning_rate=1e-1"),
    "ia3": ("method=ia3", "training.learning_rate=1e-2"),
    "bottleneck": ("method=bottleneck", "training.learning_rate=3e-3"),
    "freeze": ("method=freeze", "training.learning_rate=3e-4"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing, and print the table. What fails is said and stops nothing else; 1 is returned then."""
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    done = {(row["set"], row["method"]) for row in _read(args.out)}
    missing = [(one, method) for one in args.sets for method in args.methods if (one, method) not in done]
    failures: list[BaseException] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for work in as_completed([pool.submit(_measure, args, *pair) for pair in missing]):
            if failure := work.exception():
                failures.append(failure)
                print(failure, file=sys.stderr)
                continue
            row = work.result()
            with (args.out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(table([row]), file=sys.stderr)
    text = table(_read(args.out))
    (args.out / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if failures else 0


def _measure(args: argparse.Namespace, name: str, method: str) -> dict[str, Any]:
    """Train and score one adapter (or only score the base). Raises RuntimeError with the command's own words."""
    output = args.out / f"{name}-{method}"
    trained: dict[str, Any] = {}
    if method != BASE:
        _hotswap(args, "train", *_settings(args, name, method, output), "--overwrite", "--quiet")
        trained = json.loads((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    report = output.with_suffix(".json")
    rows = ("--recipe", name, "--path", str(args.data / name), "--split", "test", "--rows", str(args.rows))
    asked = (BASE, "--base", args.base, "--quantize", args.quantize) if method == BASE else (str(output),)
    how = ["--concurrency", "16", "--timeout", _TIMEOUT, "--quiet"]
    if args.max_tokens:
        how += ["--max-tokens", str(args.max_tokens)]
    _hotswap(args, "eval", *asked, *rows, *how, "--json", str(report))
    scored = json.loads(report.read_text(encoding="utf-8"))
    return {"set": name, "method": method, "trained": trained, "scored": scored}


def _settings(args: argparse.Namespace, name: str, method: str, output: Path) -> Iterator[str]:
    one = SETS[name]
    yield from (f"base={args.base}", f"output={output}")
    yield from (f"data.recipe={name}", f"data.path={args.data / name}", "data.validation=50", "data.max_length=1024")
    steps = round(one.steps * args.budget)
    yield from (f"training.batch_size={one.batch}", f"training.max_steps={steps}", f"training.eval_steps={steps}")
    yield from ("training.warmup=0.05", "training.threads=1", "training.log_steps=10")
    yield from (f"training.quantize={args.quantize}", *METHODS[method])


def _hotswap(args: argparse.Namespace, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    command = [sys.executable, "-m", "hotswap", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()}")


def _read(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.method_results", description="Methods side by side on real data.")
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder for each published set")
    parser.add_argument("--out", type=Path, default=Path("method-results"), help="default: %(default)s")
    parser.add_argument("--sets", type=_names_of(SETS), default=list(SETS), help="default: all")
    methods = {BASE: (), **METHODS}
    parser.add_argument("--methods", type=_names_of(methods), default=list(methods), help="default: all")
    parser.add_argument("--base", default="smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=1.0, help="steps, as a multiple of the small budget")
    parser.add_argument("--rows", type=int, default=200, help="test rows (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="of an answer (default: by the longest reference)")
    parser.add_argument("--quantize", default="none", help="of the base (default %(default)s: freeze needs it)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default %(default)s)")
    return parser


def _names_of(known: Sequence[str] | dict[str, Any]) -> Any:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return chosen

    return names


if __name__ == "__main__":
    raise SystemExit(main())
