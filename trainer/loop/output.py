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
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from adapters.kinds.config import CONFIG_FILE as ADAPTER_CONFIG
from adapters.package.files import MANIFEST_FILE
from bases.compute import dtype_name
from trainer.base_model import Base, device
from trainer.config.data import absolute
from trainer.config.methods import FullMethod
from trainer.config.preference import RewardPreference
from trainer.config.schema import TrainConfig
from trainer.distributed.launch import process_count
from trainer.errors import CheckpointError
from trainer.files import BASE_DIR, CONFIG_FILE, PACKAGE_DIR, REWARD_DIR, SERVED_TEMPLATE, write_json
from trainer.loop.checkpoint import PARAMETERS_FILE, STATE_FILE, checkpoints, is_torn, step_directories, step_of
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


def check_output(output: Path, resume: bool | str, overwrite: bool) -> Path | None:
    """The checkpoint to resume from: the last one in ``output``, or what ``resume`` names.

    Raises CheckpointError unless a run may begin there. Changes nothing: whatever else is wrong with a run is found
    before an older one is touched.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is not a directory")
    holds_run = (output / CONFIG_FILE).exists()
    if resume is True:
        return _last_checkpoint(output, holds_run)
    named = named_checkpoint(Path(absolute(resume))) if resume else None
    if named and _is_own(named, output):
        return named
    if holds_run and not overwrite:
        whose = f", and {named} is of another one" if named else ""
        raise CheckpointError(
            f"{output} holds a run already{whose}: go on with --resume, or start anew with --overwrite"
        )
    place = next(parent for parent in (output, *output.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "may not be written to" if place.is_dir() else "is not a directory"
        raise CheckpointError(f"{output} cannot be created: {place} {why}")
    return named


def named_checkpoint(path: Path) -> Path:
    """The checkpoint ``path``, or the last one in the folder ``path`` of a run. Raises CheckpointError."""
    if not path.is_dir():
        raise CheckpointError(f"resume_from_checkpoint: there is no directory {path}")
    if (path / PARAMETERS_FILE).is_file():
        if is_torn(path):
            raise CheckpointError(f"resume_from_checkpoint: {path} was cut short; use an earlier checkpoint")
        return path
    if found := checkpoints(path):
        return found[-1]
    hint = "; to begin with an adapter, use start_from" if (path / ADAPTER_CONFIG).is_file() else ""
    raise CheckpointError(
        f"resume_from_checkpoint: {path} is neither a checkpoint of this trainer nor the output of a run with one{hint}"
    )


def _is_own(checkpoint: Path, output: Path) -> bool:
    return output.is_dir() and checkpoint.parent.samefile(output) and checkpoint in step_directories(checkpoint.parent)


def make_output(output: Path, config: TrainConfig, checkpoint: Path | None) -> Path | None:
    """Make ``output`` ready for the run of ``config`` that goes on from ``checkpoint``, or begins without one.

    Checkpoints behind ``checkpoint`` are removed, for the run writes their steps again; one of another output is copied
    here. Without one all that an older run left is removed, but for the result that this one will take the place of.
    Returns the checkpoint in ``output``. Raises CheckpointError.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be created: {error.strerror}") from error
    if checkpoint and _is_own(checkpoint, output):
        for path in step_directories(output):
            if step_of(path) > step_of(checkpoint) and (is_torn(path) or (path / PARAMETERS_FILE).is_file()):
                shutil.rmtree(path)
        return output / checkpoint.name
    if (output / CONFIG_FILE).exists():  # or nothing there is a run's
        _clear(output, config)
    return _taken_over(checkpoint, output) if checkpoint else None


def _taken_over(checkpoint: Path, output: Path) -> Path:
    """``checkpoint`` of another output, with the best one of its run and the records, copied into ``output``."""
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    best = f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
    copy = output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    try:
        for source, target in ((checkpoint.parent / best, output / best), (checkpoint, copy)):
            if source.is_dir() and not target.exists():
                shutil.copytree(source, target)
        for name in (METRICS_FILE, RECORD_FILE):
            if (checkpoint.parent / name).is_file():
                shutil.copy(checkpoint.parent / name, output / name)
    except OSError as error:  # of copytree: a list of what could not be copied
        shutil.rmtree(copy, ignore_errors=True)
        raise CheckpointError(f"{checkpoint} cannot be copied to {output}: {error.strerror or error}") from error
    return copy


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
