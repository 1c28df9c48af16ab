"""metrics.jsonl: one line for each logged step, each evaluation and the end. Knows nothing of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.files import write_whole

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends records to ``path``; every line is flushed, so that a run can be watched."""

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        """Start afresh, or keep the records up to ``resume_step``: what came after is computed again."""
        self._path = path
        kept = [] if resume_step is None else [r for r in read_metrics(path) if r.get("step", 0) <= resume_step]
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; it must hold ``step``."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            error.filename = str(self._path)  # a failed write does not say where
            raise


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in ``path``, none without the file; a torn last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
