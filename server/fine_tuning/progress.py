"""What a run says of itself, in its metrics.jsonl: read as it grows, told as events, and kept as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from server.catalog.jobs import JobEvent

METRICS_FILE = "metrics.jsonl"
_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
_NAMES = {"loss": "train_loss", "eval_loss": "valid_loss", "rewards/accuracies": "train_accuracy"}


class MetricsReader:
    """New records of a file that another process appends to, and may begin anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Whole lines since the last call. Blocks on the disk."""
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_size < self._offset:
                    self._offset = 0  # what follows a checkpoint is computed again
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return [record for line in data[:end].splitlines() if (record := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def is_summary(record: Mapping[str, Any]) -> bool:
    """Whether ``record`` is the last of a run, which sums it up."""
    return "train_seconds" in record


def measured(record: Mapping[str, Any]) -> dict[str, float]:
    """What a step's record says, by the names that clients know."""
    return {ours: record[theirs] for theirs, ours in _NAMES.items() if record.get(theirs) is not None}


def metrics_event(record: Mapping[str, Any], steps: int) -> JobEvent | None:
    """What is told of a step; None for what is no step's."""
    data = measured(record)
    if is_summary(record) or not data:
        return None
    if "train_loss" in data:
        message = f"Step {record['step']}/{steps}: training loss={data['train_loss']:.4f}"
    else:
        message = f"Step {record['step']}/{steps}: validation loss={data['valid_loss']:.4f}"
    return JobEvent(message=message, type="metrics", data={"step": record["step"], "total_steps": steps, **data})


def trained_tokens(records: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of all steps together."""
    return sum(record.get("tokens", 0) for record in records if "loss" in record)


def results_table(records: Sequence[Mapping[str, Any]]) -> bytes:
    """OpenAI's CSV of a run: a line for each step, empty where nothing was measured."""
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        if not is_summary(record):
            row = rows.setdefault(record["step"], {})
            row.update(measured(record))
    out = io.StringIO()
    table = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows({"step": step, **rows[step]} for step in sorted(rows))
    return out.getvalue().encode()
