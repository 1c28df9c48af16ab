"""run.json: what a run was made of and with, so that it can be repeated: versions, machine, hashes, seeds."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trainer.base_model import Base, device
from trainer.config.schema import TrainConfig
from trainer.distributed.launch import process_count
from trainer.files import write_whole

RECORD_FILE = "run.json"
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
        "base": {"name": base.name, "fingerprint": base.fingerprint, "dtype": str(base.dtype).removeprefix("torch.")},
        **sources,
        "seed": config.training.seed,
        "starts": [*starts, {"step": resume_step or 0, **_environment()}],
    }
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


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
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
