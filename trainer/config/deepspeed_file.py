"""A DeepSpeed JSON, as the guides hand it to their scripts: what it says in keys of ours.

Numbers that a launcher would fill in (``auto``), and settings of nothing but the speed of communication, say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.nested import Proposal, get, read_object
from trainer.errors import ConfigError

_STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
_OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "sgd": "sgd"}
_SCHEDULERS = {"warmuplr": "constant", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}
_OFFLOADS = ("offload_optimizer", "offload_param")
_PARAMETERS = {"lr": "learning_rate", "eps": "adam_epsilon", "weight_decay": "weight_decay"}


@dataclass(frozen=True)
class DeepSpeedFile:
    """What stands in the file called ``name``."""

    name: str
    values: Mapping[str, Any]
    proposals: list[Proposal]

    def words(self, raw: Mapping[str, Any]) -> Iterator[str]:
        """What people should know of it beside the run's settings ``raw``: one line each."""
        zero = self.values.get("zero_optimization") or {}
        offloads = [key for key in _OFFLOADS if (zero.get(key) or {}).get("device") not in (None, "none", "auto")]
        if offloads:
            yield (
                f"{self.name} moves to the CPU what is not moved here ({', '.join(offloads)}); quantize, "
                "gradient_checkpointing and adamw_8bit save memory"
            )
        for section, known in (("optimizer", _OPTIMIZERS), ("scheduler", _SCHEDULERS)):
            kind = (self.values.get(section) or {}).get("type")
            if kind and kind.lower() not in known:
                yield f"{self.name} says {section}: {kind}, which is not known here; see training.{section}"
        total = _number(self.values.get("train_batch_size"))
        rows = [get(raw, f"training.{key}") for key in ("batch_size", "gradient_accumulation")]
        if total and all(isinstance(one, int) for one in rows) and rows[0] * rows[1] != total:
            yield (
                f"{self.name} says train_batch_size: {total}, but a step has training.batch_size {rows[0]} times "
                f"gradient_accumulation {rows[1]}, which is taken"
            )


def read_deepspeed(file: Any, folder: Path, processes: int) -> DeepSpeedFile:
    """What ``file`` says, a path (here, or in ``folder``) or the object itself. Raises ConfigError."""
    name, values = ("deepspeed", file) if isinstance(file, Mapping) else (str(file), _load(str(file), folder))
    for section in ("zero_optimization", "optimizer", "scheduler", "fp16", "bf16", *_OFFLOADS):
        holder = values.get("zero_optimization") or {} if section in _OFFLOADS else values
        if not isinstance(holder.get(section, {}), Mapping | None):
            raise ConfigError(f"deepspeed: {section} in {name} must be an object")
    proposals = [Proposal(f"training.{key}", value, name) for key, value in _settings(name, values)]
    return DeepSpeedFile(name, values, [*_batch(name, values, processes), *proposals])


def _load(path: str, folder: Path) -> Mapping[str, Any]:
    found = next((one for one in (Path(path), folder / path) if one.is_file()), None)
    if found is None:
        stage = re.search(r"(?:zero|z|stage)_?([1-3])", Path(path).name)
        instead = f"training.strategy: zero{stage[1]}" if stage else "training.strategy (zero1, zero2, zero3)"
        raise ConfigError(f"deepspeed: there is no file {path}; give its path, or say {instead} in its place")
    return read_object("deepspeed", found, "JSON object")


def _batch(name: str, values: Mapping[str, Any], processes: int) -> Iterator[Proposal]:
    """Rows of a step. ``train_batch_size`` is that of all processes and accumulated batches together."""
    accumulation = _number(values.get("gradient_accumulation_steps"))
    micro, total = (_number(values.get(key)) for key in ("train_micro_batch_size_per_gpu", "train_batch_size"))
    if micro:
        yield Proposal("training.batch_size", micro * processes, name)
    elif total:
        yield Proposal("training.batch_size", max(1, total // (accumulation or 1)), name, derived=True)
    if accumulation:
        yield Proposal("training.gradient_accumulation", accumulation, name)
    elif micro and total:
        yield Proposal("training.gradient_accumulation", max(1, total // (micro * processes)), name, derived=True)


def _settings(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Our keys under ``training`` and what the file says of them."""
    stage = (values.get("zero_optimization") or {}).get("stage", 0)
    if stage not in range(len(_STRATEGIES)) or isinstance(stage, bool):
        raise ConfigError(f"deepspeed: zero_optimization.stage in {name} is {stage!r}; stages are 0 to 3")
    yield "strategy", _STRATEGIES[stage]
    if clipping := _number(values.get("gradient_clipping")):
        yield "max_grad_norm", clipping
    for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        if (values.get(key) or {}).get("enabled") is True:
            yield "dtype", dtype
    yield from _optimizer(values.get("optimizer") or {})
    yield from _scheduler(values.get("scheduler") or {})


def _optimizer(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if kind := _OPTIMIZERS.get(str(section.get("type")).lower()):
        yield "optimizer", kind
    parameters = section.get("params") or {}
    for theirs, ours in _PARAMETERS.items():
        value = _number(parameters.get(theirs))
        if value is not None:
            yield ours, value
    betas = parameters.get("betas")
    if isinstance(betas, list) and len(betas) == 2:
        yield from zip(("adam_beta1", "adam_beta2"), betas, strict=True)


def _scheduler(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if kind := _SCHEDULERS.get(str(section.get("type")).lower()):
        yield "scheduler", kind
    if steps := _number((section.get("params") or {}).get("warmup_num_steps")):
        yield "warmup", steps


def _number(value: Any) -> Any:
    """``value`` where it is a number; None for ``auto`` and where there is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
