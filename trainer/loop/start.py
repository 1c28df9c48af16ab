"""Training that begins with an adapter there is already, instead of a fresh one.

From the package of any trainer whose format is peft's, or from a checkpoint of a run of ours. What a package does not
hold (the encoder that made a prefix) only a checkpoint has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.errors import AdapterError
from adapters.kinds.config import CONFIG_FILE
from adapters.limits import DEFAULT_LIMITS
from adapters.package.reading import read_package
from adapters.package.strict_json import read_object
from adapters.package.writing import encode_config
from adapters.quoting import quote
from trainer.base_model import Base
from trainer.errors import CheckpointError, ConfigError
from trainer.files import sha256_of
from trainer.loop.checkpoint import PARAMETERS_FILE, put_parameters, read_identity, read_parameters
from trainer.methods import adapter_of, load_adapter

# Keys of a package's configuration that say how it came to be, or what the tensors' names and shapes say better.
_NO_MATTER = {
    *("base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "layers"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("projection_prng_key", "save_projection"),
    *("runtime_config", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("qalora_group_size", "ensure_weight_tying", "trainable_token_indices", "modules", "arrow_config"),
}


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """What training begins with. ``base`` is the fingerprint of the base it is for, where that is known.

    ``settings`` are the configuration of a package, or the method of the run that a checkpoint is of; ``tensors`` have
    the names that packages give them, or those of the parameters. ``labels`` are those of a package with a head.
    """

    path: Path
    is_package: bool
    sha256: str
    base: str | None
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()


def read_start(path: Path) -> StartingPoint:
    """What is in ``path``, a package or a checkpoint. Raises ConfigError when it is neither, or not sound."""
    try:
        if (path / PARAMETERS_FILE).is_file():
            identity = read_identity(path)
            parameters = read_parameters(path)
            sha256 = sha256_of(path / PARAMETERS_FILE)
            return StartingPoint(path, False, sha256, identity.base, identity.settings["method"], parameters)
        if not (path / CONFIG_FILE).is_file():
            raise ConfigError(_neither(path))
        package = read_package(path)
        config = read_object(path / CONFIG_FILE, DEFAULT_LIMITS.max_json_bytes)
    except (AdapterError, CheckpointError) as error:
        raise ConfigError(f"start_from: {error}") from error
    base = package.manifest.base.fingerprint if package.manifest else None
    pooled = package.manifest.pooled if package.manifest else None
    labels = tuple(pooled.labels or ()) if pooled else ()
    return StartingPoint(path, True, package.digest, base, config, package.tensors, labels)


def begin_with(start: StartingPoint, model: Any, base: Base, method: Mapping[str, Any]) -> None:
    """Put ``start`` into ``model``, which has a fresh adapter of ``method`` (its configuration as plain data).

    Raises ConfigError when it is of another base, or of a method with other settings.
    """
    if start.base is not None and start.base != base.fingerprint:
        raise ConfigError(f"start_from: {start.path} was trained on another base than {base.name}")
    if start.is_package:
        if start.settings.get("peft_type") == "ADALORA":
            raise ConfigError(
                "start_from: the package of an AdaLoRA adapter holds the ranks that were kept, not those that training "
                "begins with; name a checkpoint of its run (OUTPUT/checkpoint-N)"
            )
        _check_same(start.settings, json.loads(encode_config(adapter_of(model)[0])), "")
        load_adapter(model, start.tensors)
        return
    _check_same(start.settings, method, "method.")
    try:
        put_parameters(model, start.tensors, start.path)
    except CheckpointError as error:
        raise ConfigError(f"start_from: {error}") from error


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str) -> None:
    for key in sorted(theirs.keys() & ours.keys(), key=lambda key: (key not in ("peft_type", "type"), key)):
        if key in _NO_MATTER or "dropout" in key or key.startswith("init_") or _same(theirs[key], ours[key]):
            continue
        raise ConfigError(
            f"start_from: {prefix}{key} is {quote(theirs[key])} there and {quote(ours[key])} here; give method the "
            "settings that the adapter was made with"
        )


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, list) and isinstance(ours, list):  # peft writes sets of names in any order
        return sorted(map(str, theirs)) == sorted(map(str, ours))
    return bool(theirs == ours)


def _neither(path: Path) -> str:
    if not path.is_dir():
        return f"start_from: there is no directory {path}"
    inside = [
        found for found in ("adapter", *sorted(p.name for p in path.glob("checkpoint-*"))) if (path / found).is_dir()
    ]
    hint = f"; it holds {' and '.join(inside)}: name one of them" if inside else ""
    return f"start_from: {path} is neither an adapter's package nor a checkpoint{hint}"
