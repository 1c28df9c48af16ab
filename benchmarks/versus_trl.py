"""``python -m benchmarks.versus_trl``: our LoRA training beside TRL's SFTTrainer, run by turns in fresh processes.

Both train the same rows with the same rank, targets, learning rate, schedule, batch size, steps, seed, precision and
threads, on the completions alone. Both adapters are then scored by one evaluator (transformers and peft): loss on held
out rows, and exact match of greedy answers. TRL runs with three settings:

- ``trl-same``: our token ids in our batches, no gradient checkpointing, no autocast. What remains is the two loops.
- ``trl-best``: its own tokenising and batches grouped by length, no gradient checkpointing, no autocast.
- ``trl-default``: its own tokenising, and everything else as SFTConfig has it: checkpointing and bfloat16 autocast on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bases.finding import DEFAULT_BASE

OURS = "hotswap"
RIVALS = ("trl-same", "trl-best", "trl-default")
# name, unit, whether more is better
FIGURES = (
    ("tokens_per_second", "tokens/s", True),
    ("train_seconds", "s", False),
    ("cpu_seconds", "s of all threads, whatever else the machine does", False),
    ("peak_memory_mb", "MB", False),
    ("validation_loss", "nats/token", False),
    ("exact_match", "share", True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all rounds, print the table and write report.json; 1 when a run fails."""
    args = _parser().parse_args(argv)
    folder = Path(args.out or tempfile.mkdtemp(prefix="versus-trl-"))
    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(args, folder)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    runs: list[dict[str, Any]] = []
    for turn in range(args.rounds):
        for side in (OURS, *args.against):
            print(f"round {turn + 1} of {args.rounds}: {side}", file=sys.stderr)
            try:
                runs.append(_run(folder, side, turn, args.threads))
            except subprocess.CalledProcessError as error:
                print(f"versus_trl: {side} failed; see {folder / f'{side}-{turn}.log'} ({error})", file=sys.stderr)
                return 1
        report = {"settings": settings, "runs": runs, "ratios": ratios(runs, args.against)}
        (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(table(runs, args.against))
    print(f"\nreport: {folder / 'report.json'}")
    return 0


def ratios(runs: Sequence[dict[str, Any]], rivals: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Ours over each rival's, one ratio a round: runs of the same round are neighbours in time."""
    by_side = _by_side(runs)
    return {
        rival: {
            name: [_ratio(a[name], b[name]) for a, b in zip(by_side[OURS], by_side[rival], strict=True)]
            for name, _unit, _more in FIGURES
        }
        for rival in rivals
    }


def table(runs: Sequence[dict[str, Any]], rivals: Sequence[str]) -> str:
    """Medians over the rounds as Markdown, and the median ratio to each rival."""
    by_side = _by_side(runs)
    shares = ratios(runs, rivals)
    lines = [
        f"| | {OURS} | " + " | ".join(f"{rival} | {OURS}/{rival}" for rival in rivals) + " |",
        "|---|" + "---:|" * (1 + 2 * len(rivals)),
    ]
    for name, unit, more in FIGURES:
        cells = [_shown(_median(by_side[OURS], name))]
        for rival in rivals:
            cells += [_shown(_median(by_side[rival], name)), f"{statistics.median(shares[rival][name]):.3f}"]
        better = "more" if more else "less"
        lines.append(f"| {name.replace('_', ' ')} ({unit}, {better} is better) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _run(folder: Path, side: str, turn: int, threads: int) -> dict[str, Any]:
    """Train and score in two fresh processes."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",  # TRL sends telemetry otherwise
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    run = folder / f"{side}-{turn}"
    shutil.rmtree(run, ignore_errors=True)  # of an earlier use of the same folder
    with (folder / f"{side}-{turn}.log").open("wb") as log:
        for module in ("benchmarks.versus_trl_sides", "benchmarks.versus_trl_scores"):
            command = [sys.executable, "-m", module, side, str(folder / "settings.json"), str(run)]
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    figures = {**_read(run / "training.json"), **_read(run / "scores.json")}
    return {"side": side, "round": turn, **figures}


def _settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What both sides are given; the rows are written beside it."""
    from bases.finding import resolve_base

    train, held = _rows(args)
    for name, rows in (("train", train), ("held", held)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    keys = ("r", "alpha", "learning_rate", "steps", "batch_size", "max_length", "seed", "dtype", "threads")
    return {
        "base": str(resolve_base(args.base)),
        "train": str(folder / "train.jsonl"),
        "held": str(folder / "held.jsonl"),
        "answers": args.answers,
        **{key: getattr(args, key) for key in keys},
    }


def _rows(args: argparse.Namespace) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of prompt and response to train on, and others to score on, drawn by the seed."""
    import random

    draw = random.Random(args.seed)
    if args.recipe:
        from trainer.recipes import RECIPES

        recipe = RECIPES[args.recipe]
        splits = [list(recipe.rows(Path(args.data), "train")), list(recipe.rows(Path(args.data), "test"))]
        plain = [[{"prompt": row["prompt"], "response": row["response"]} for row in rows] for rows in splits]
        for rows in plain:
            draw.shuffle(rows)
        return plain[0][: args.rows], plain[1][: args.held]
    lines = Path(args.data).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    draw.shuffle(rows)
    return rows[args.held :][: args.rows], rows[: args.held]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus_trl", description=__doc__)
    parser.add_argument("--data", required=True, help="JSONL of prompt and response, or the folder of --recipe")
    parser.add_argument("--recipe", help="for example snips")
    parser.add_argument("--base", default=DEFAULT_BASE, help="default: %(default)s")
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=list(RIVALS[:2]), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=4000, help="to train on; default: %(default)s")
    parser.add_argument("--held", type=int, default=200, help="rows for the validation loss; default: %(default)s")
    parser.add_argument("--answers", type=int, default=100, help="of them answered greedily; default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="default: %(default)s")
    parser.add_argument("--r", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--alpha", type=float, default=16, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--out", metavar="DIR", help="where runs and report.json go; default: a new folder in /tmp")
    return parser


def _by_side(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        out.setdefault(run["side"], []).append(run)
    return out


def _median(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan") if a else 1.0


def _shown(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.4g}"


def _read(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return out


if __name__ == "__main__":
    raise SystemExit(main())
