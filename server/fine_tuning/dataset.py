"""Files of clients to the rows that a run reads, in its folder. Blocks: run it off the event loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.package.files import PACKAGE_FILES
from server.catalog.store import disk_errors
from server.files.checks import check_training
from server.files.lines import Problems, dump, rows
from server.files.training_rows import RowKind, kind_of_row, trainer_row
from server.fine_tuning.job import FineTuningJob, JobFailedError

TRAINING_FILE, VALIDATION_FILE, START = "training.jsonl", "validation.jsonl", "start"


@dataclass(frozen=True)
class CheckedFiles:
    """What the rows of a job's files are, and how many there are to train on."""

    kind: RowKind
    rows: int


def check_files(job: FineTuningJob, training: Path, validation: Path | None) -> CheckedFiles:
    """Raise JobFailedError, with the lines and reasons, for files that ``job`` cannot use."""
    found = _checked(job, training, "training_file")
    if validation is not None and (other := _checked(job, validation, "validation_file")).kind is not found.kind:
        message = f"has {other.kind.value} rows, and the training file {found.kind.value} rows"
        raise JobFailedError("invalid_validation_file", f"validation_file: {message}", "validation_file")
    return found


def _checked(job: FineTuningJob, path: Path, param: str) -> CheckedFiles:
    problems = Problems()
    kind, count = check_training(path, problems)
    if problems or kind is None:
        raise JobFailedError(f"invalid_{param}", f"{param}: {problems}", param)
    if (kind is RowKind.PREFERENCE) != (job.method == "dpo"):
        wanted = (
            "rows with input, preferred_output and non_preferred_output" if job.method == "dpo" else "rows to learn"
        )
        raise JobFailedError(
            f"invalid_{param}", f"{param}: the method {job.method} takes {wanted}, not {kind.value} rows", param
        )
    return CheckedFiles(kind, count)


@disk_errors()
def write_rows(source: Path, target: Path) -> int:
    """Write the rows of a checked file as the trainer reads them; returns how many."""
    part, count = target.with_suffix(".part"), 0
    with part.open("wb") as file:
        for _, row in rows(source, Problems()):
            file.write(dump(trainer_row(row, kind_of_row(row))))
            count += 1
    part.rename(target)
    return count


@disk_errors()
def copy_package(source: Path, target: Path) -> dict[str, Any]:
    """Copy the package of the adapter that training begins with; returns its configuration."""
    target.mkdir(exist_ok=True)
    for name in _present(source, PACKAGE_FILES):
        shutil.copyfile(source / name, target / name)
    return read_adapter_config(target)


def read_adapter_config(package: Path) -> dict[str, Any]:
    """The configuration of an adapter that is served, which was checked when it came."""
    config = json.loads((package / "adapter_config.json").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def _present(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file()]
