"""The output directory of a run: whether it can be used, what of an older run has to go, and its account, run.json.

run.json says what a run was made of and with, so that it can be repeated: versions, machine, hashes, seeds.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from adapters.package.files import MANIFEST_FILE
from bases.compute import dtype_name
from trainer.base_model import Base, device
from trainer.config.methods import FullMethod
from trainer.config.preference import RewardPreference
from trainer.config.schema import TrainConfig
from trainer.distributed.launch import process_count
from trainer.errors import CheckpointError
from trainer.files import BASE_DIR, CONFIG_FILE, PACKAGE_DIR, REWARD_DIR, SERVED_TEMPLATE, write_json
from trainer.loop.checkpoint import checkpoints, is_torn, step_directories, step_of
from trainer.loop.records import METRICS_FILE, PLOT_FILE, TENSORBOARD_DIR

RECORD_FILE = "run.json"  # in the output directory; a checkpoint has another of this name (loop.checkpoint)
_PACKAGES = (
    "hotswap",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "trl",
)


def write_record(
    output: Path, config: TrainConfig, base: Base, sources: dict[str, Any], resume_step: int | None
) -> None:
    """Write run.json in ``output``; a resumed run adds its own start to the earlier ones.

    ``sources`` has the hashes of data and adapter that the run is made from.
    """
    path = output / RECORD_FILE
    starts = _earlier_starts(path) if resume_step is not None else []
    record = {
        "base": {"name": base.name, "fingerprint": base.fingerprint, "dtype": dtype_name(base.dtype)},
        **sources,
        "seed": config.training.seed,
        "starts": [*starts, {"step": resume_step or 0, **_environment()}],
    }
    write_json(path, record)


def _earlier_starts(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _environment() -> dict[str, Any]:
    on = device()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": process_count(),
        "packages": package_versions(_PACKAGES),
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of the packages ``names`` that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_output(output: Path, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint in ``output`` to resume from. Raises CheckpointError unless a run may begin there.

    Changes nothing: whatever else is wrong with a run is found before an older one is touched.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is not a directory")
    holds_run = (output / CONFIG_FILE).exists()
    if resume:
        return _last_checkpoint(output, holds_run)
    if holds_run and not overwrite:
        raise CheckpointError(f"{output} holds a run already: go on with --resume, or start anew with --overwrite")
    place = next(parent for parent in (output, *output.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "may not be written to" if place.is_dir() else "is not a directory"
        raise CheckpointError(f"{output} cannot be created: {place} {why}")
    return None


def make_output(output: Path, config: TrainConfig, checkpoint: Path | None) -> None:
    """Make ``output`` ready for the run of ``config`` that goes on from ``checkpoint``, or begins without one.

    Torn checkpoints behind ``checkpoint`` are removed, for the run writes their steps again; without one all that an
    older run left is, but for the result that this one will take the place of. Raises CheckpointError.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be created: {error.strerror}") from error
    if checkpoint:
        for path in step_directories(output):
            if step_of(path) > step_of(checkpoint) and is_torn(path):
                shutil.rmtree(path)
    elif (output / CONFIG_FILE).exists():  # or nothing there is a run's
        _clear(output, config)


def result_directory(config: TrainConfig) -> str:
    """The name, in its output, of the directory that the run of ``config`` ends in."""
    if isinstance(config.preference, RewardPreference):
        return REWARD_DIR
    return BASE_DIR if isinstance(config.method, FullMethod) else PACKAGE_DIR


def _last_checkpoint(output: Path, holds_run: bool) -> Path:
    found = checkpoints(output)
    if not found:
        instead = "start anew with --overwrite" if holds_run else "train without --resume"
        raise CheckpointError(f"there is no complete checkpoint in {output}; {instead}")
    return found[-1]


def _clear(output: Path, config: TrainConfig) -> None:
    for path in step_directories(output):
        shutil.rmtree(path)
    shutil.rmtree(output / TENSORBOARD_DIR, ignore_errors=True)
    for name in (METRICS_FILE, PLOT_FILE, RECORD_FILE, SERVED_TEMPLATE):
        (output / name).unlink(missing_ok=True)
    for name in {PACKAGE_DIR, BASE_DIR, REWARD_DIR} - {result_directory(config)}:
        path = output / name
        if (path / MANIFEST_FILE).is_file() and str(path) != config.base:
            shutil.rmtree(path)
    (output / CONFIG_FILE).unlink()  # last: while it is there, there is something to clear
