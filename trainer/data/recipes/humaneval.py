"""Python functions to complete: a probe of what a model can still do; nothing to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import jsonl_of


def _rows(folder: Path, _split: Split) -> Iterator[Row]:
    for row in jsonl_of(folder / "HumanEval.jsonl.gz", "prompt", "canonical_solution", "entry_point", "test"):
        yield {
            "prompt": row["prompt"],
            "response": row["canonical_solution"],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }


HUMANEVAL = Recipe("humaneval", "Python functions to complete (a probe, test only)", _rows, ("test",), ("perplexity",))
