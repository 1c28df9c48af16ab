"""What a run is told of base and machine, and the numbers that ``auto`` stands for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from server.fine_tuning.job import FineTuningJob, Hyperparameters

LEARNING_RATES = {"supervised": 5e-4, "dpo": 5e-5}  # of multiplier 1: the trainer's presets for LoRA
BETA = 0.1
EPOCHS, FEW_ROWS, MANY_ROWS, MOST_EPOCHS = 3, 100, 25_000, 25  # as OpenAI chooses them
MOST_ROWS_A_STEP = 8
PARTS, MOST_STEPS_APART = 5, 500  # evaluations and checkpoints of a run
MAX_LENGTH = 4096
KEPT = 3  # checkpoints, as OpenAI keeps them


@dataclass(frozen=True)
class TunedBase:
    """The base that is served: its name for clients, its folder, and how it is held and asked."""

    name: str
    folder: Path
    quantization: str
    dtype: str
    max_model_len: int
    device: str = "cpu"
    template: str | None = None  # that is served instead of its own
    trust_remote_code: bool = False


@dataclass(frozen=True)
class RunLimits:
    """What the process of a run may take. 0 bytes: no limit. ``cores``: those of the machine it may use."""

    cores: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class RunFiles:
    """Where the rows of a run are, how many, and what it begins with."""

    rows: int
    kind: str
    training: Path
    validation: Path | None = None
    start: Path | None = None
    method: Mapping[str, Any] = field(default_factory=dict)  # of the adapter in ``start``
    tools: str | None = None  # how that has learned functions and calls to be written


def resolved(asked: Hyperparameters, rows: int, method: str) -> Hyperparameters:
    """``asked`` with numbers for ``auto``, by how many ``rows`` there are to train on."""
    epochs = asked.n_epochs
    if epochs == "auto":
        epochs = EPOCHS
        if rows * EPOCHS < FEW_ROWS:
            epochs = min(MOST_EPOCHS, max(FEW_ROWS // rows, EPOCHS))
        elif rows * EPOCHS > MANY_ROWS:
            epochs = max(1, MANY_ROWS // rows)
    batch = asked.batch_size if asked.batch_size != "auto" else min(max(rows // 25, 1), MOST_ROWS_A_STEP)
    rate = asked.learning_rate_multiplier
    beta = asked.beta
    return Hyperparameters(
        n_epochs=epochs,
        batch_size=batch,
        learning_rate_multiplier=1.0 if rate == "auto" else rate,
        beta=BETA if beta == "auto" and method == "dpo" else beta,
    )


def run_config(
    job: FineTuningJob, base: TunedBase, files: RunFiles, folder: Path, common: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of ``hotswap train`` for ``job``, its ``auto`` resolved, over the operator's ``common``."""
    numbers = job.hyperparameters
    assert isinstance(numbers.n_epochs, int)
    assert isinstance(numbers.batch_size, int)
    assert isinstance(numbers.learning_rate_multiplier, float)
    steps = numbers.n_epochs * math.ceil(files.rows / numbers.batch_size)
    every = min(math.ceil(steps / PARTS), MOST_STEPS_APART)
    validates = files.validation is not None
    data = {
        "path": str(files.training),
        "validation": str(files.validation) if files.validation else 0,
        "max_length": min(base.max_model_len, MAX_LENGTH),
        "too_long": "cut_end",
        **({"tools": files.tools} if files.tools else {}),
        **({"template": "none"} if files.kind == "completion" else {}),
        **({"template": str(folder / "template.jinja")} if base.template is not None else {}),
    }
    training = {
        "epochs": numbers.n_epochs,
        "batch_size": numbers.batch_size,
        "learning_rate": LEARNING_RATES[job.method] * numbers.learning_rate_multiplier,
        "seed": job.seed % 2**32,
        "quantize": base.quantization,
        "dtype": base.dtype,
        "save_steps": every,
        "keep_checkpoints": KEPT,
        "package_checkpoints": True,
        **({"eval_steps": every, "eval_at_start": True, "best_checkpoint": True} if validates else {}),
    }
    given: dict[str, Any] = {
        "output": str(folder / "output"),
        "base": str(base.folder),
        "trust_remote_code": base.trust_remote_code,
        "data": data,
        "training": training,
        **({"method": dict(files.method)} if files.method else {}),
        **({"start_from": str(files.start)} if files.start else {}),
        **({"preference": {"type": "dpo", "beta": numbers.beta}} if job.method == "dpo" else {}),
    }
    out = dict(common)
    for key, value in given.items():
        out[key] = {**out.get(key, {}), **value} if isinstance(value, dict) and key != "method" else value
    out.setdefault("method", {"type": "lora"})
    return out


def environment(cores: int) -> dict[str, str]:
    """The variables of a run's process: none of hotswap's own, which say how to serve and hold keys."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("HOTSWAP_")}
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(cores))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **threads, **offline, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def method_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The trainer's settings for the method of an adapter with peft's ``config``; None where none can go on from it."""
    if config.get("peft_type") != "LORA" or config.get("modules_to_save") or config.get("trainable_token_indices"):
        return None
    method = {"type": "lora", "r": config.get("r", 8), "alpha": float(config.get("lora_alpha", 16))}
    for name in ("use_rslora", "use_dora", "bias", "rank_pattern", "alpha_pattern"):
        if config.get(name):
            method[name] = config[name]
    targets = config.get("target_modules")
    if targets:
        method["target_modules"] = targets
    return method


def numbers_of(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """For people."""
    shown: dict[str, Any] = msgspec.to_builtins(hyperparameters)
    return {name: value for name, value in shown.items() if value != "auto"}
