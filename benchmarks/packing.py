"""What packing is worth: ``hotswap train`` with and without it, in turn, on rows as long as those of a data set.

    python -m benchmarks.packing --base DIR --pairs 5

Both arms learn from as many tokens a step: ``--batch`` rows without packing, one packed row of as many tokens with it.
Rows are noise with lengths drawn from a normal distribution; only the tokens a second are looked at. The clock is the
wall's: the machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Print tokens a second of every run, and the ratio packed to unpacked."""
    args = _parse(argv)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in _rows(args)), encoding="utf-8")
        for pair in range(args.pairs):
            # the arm that goes first alternates, so that a machine that warms up or slows down favours neither
            found = {packed: _train(args, Path(folder), data, packed) for packed in _order(pair)}
            ratios.append(found[True] / found[False])
            print(f"pair {pair + 1}: {found[False]:7.1f} tokens/s unpacked, {found[True]:7.1f} packed", flush=True)
    print(f"packed / unpacked: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    return 0


def _order(pair: int) -> tuple[bool, bool]:
    return (False, True) if pair % 2 == 0 else (True, False)


def _rows(args: argparse.Namespace) -> list[dict[str, str]]:
    rng = random.Random(0)
    counts = [max(2, round(rng.gauss(args.words, args.spread))) for _ in range(args.batch * args.steps * 4)]
    words = ("play", "table", "rain", "book", "movie", "for", "the", "in")
    return [
        {"prompt": " ".join(rng.choices(words, k=count // 2)), "response": " ".join(rng.choices(words, k=count // 2))}
        for count in counts
    ]


def _train(args: argparse.Namespace, folder: Path, data: Path, packed: bool) -> float:
    """Tokens a second, padding not counted."""
    run = folder / "run"
    config = {
        "base": args.base,
        "output": str(run),
        "data": {"path": str(data), "validation": 0, "max_length": args.batch * args.row_tokens},
        "training": {"packing": packed, "batch_size": 1 if packed else args.batch, "max_steps": args.steps},
    }
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "hotswap", "train", str(folder / "config.yaml"), "--quiet", "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["tokens_per_second"])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.packing", description="Training tokens/s with and without packing."
    )
    parser.add_argument("--base", required=True, help="folder of the base model")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="rows in a step without packing (default 8)")
    parser.add_argument(
        "--row-tokens", type=int, default=96, help="tokens a row is packed as, about its mean (default 96)"
    )
    parser.add_argument("--words", type=float, default=55, help="mean words in a row (default 55: as long as snips)")
    parser.add_argument("--spread", type=float, default=13, help="standard deviation of words (default 13)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
