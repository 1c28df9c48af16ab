"""Data larger than memory: what a process needs does not grow with the file."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

# Reads the file, and every example and question in random order as training does; prints the peak that this added.
LOAD = """
import random, resource, sys
from tests.factory import make_tokenizer
from trainer.config.data import DataConfig
from trainer.data.training_data import load_data

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

tokenizer = make_tokenizer()
small, large = sys.argv[1:]
load_data(DataConfig(path=small, validation=2, max_length=4096), tokenizer, (258,), 0)
before = peak()
data = load_data(DataConfig(path=large, validation=0.01, max_length=4096), tokenizer, (258,), 0)
order = list(range(len(data.train)))
random.Random(0).shuffle(order)
tokens = sum(len(data.train[i]) for i in order)
assert tokens == sum(data.train.lengths), tokens
print(len(data.train), len(data.validation), len(data.questions), tokens, peak() - before)
"""


def write(path: Path, rows: int, letters: int) -> int:
    """A file of ``rows`` rows; returns its size in MB."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            words = " ".join(f"word{rng.randrange(10**6)}" for _ in range(letters // 10))
            file.write(json.dumps({"prompt": f"{i}: {words}", "response": words[: letters // 2]}) + "\n")
    return path.stat().st_size >> 20


@pytest.mark.parametrize(
    ("rows", "size", "limit"),
    [
        pytest.param(3_000, 8, 20, marks=pytest.mark.slow),
        pytest.param(75_000, 200, 50, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, rows: int, size: int, limit: int) -> None:
    write(tmp_path / "small.jsonl", 20, 1_500)
    assert write(tmp_path / "large.jsonl", rows, 1_800) >= size
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "small.jsonl"), str(tmp_path / "large.jsonl")],
        capture_output=True,
        text=True,
        check=True,
    )
    train, validation, questions, tokens, grown = map(int, done.stdout.split())
    assert (train + validation, questions) == (rows, validation)
    assert tokens > size * 1_000_000 * 0.9  # a token a byte: several times the limit, were they kept in memory
    assert grown < limit
