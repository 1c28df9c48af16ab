"""The fingerprint of a base model: equal for equal weights and architecture, however the files are sharded or named.

Reads configuration and sampled tensor bytes straight from the files: no torch, seconds even for large models. It is
no proof against someone who crafts a model to collide; it tells bases apart that differ by training or conversion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.header import TensorInfo, read_header
from adapters.package.strict_json import read_object
from adapters.quoting import quote
from bases.errors import BaseModelError

_WHOLE = 64 * 1024  # bytes up to which a tensor is hashed whole
_WINDOW = 4096
_WINDOWS = 8
_LIMITS = PackageLimits(max_bytes=1 << 50, max_header_bytes=1 << 27, max_tensors=10_000_000, max_dims=8)
_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Keys of config.json that do not change what the model computes from token ids.
_UNRELATED = frozenset((
    "_name_or_path", "name_or_path", "transformers_version", "architectures", "auto_map", "torch_dtype", "dtype",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "attn_implementation",
    "_attn_implementation", "_attn_implementation_autoset", "output_attentions", "output_hidden_states",
    "return_dict", "gradient_checkpointing", "pretraining_tp", "attention_dropout", "hidden_dropout",
    "initializer_range", "problem_type", "id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder",
    "task_specific_params",
    "quantization_config",  # how to compute with the weights; what they are shows in the tensors' names and types
))  # fmt: skip


def base_fingerprint(directory: Path) -> str:
    """Hex SHA-256 that identifies the base model in ``directory``. Raises BaseModelError when it cannot be read."""
    if not (directory / "config.json").is_file():
        raise BaseModelError(f"{directory} is not a model directory: it holds no config.json")
    try:
        config = read_object(directory / "config.json", _LIMITS.max_json_bytes)
        files = _weight_files(directory)
        headers = {path: read_header(path, _LIMITS) for path in files}
    except PackageError as error:
        raise BaseModelError(f"the base model in {directory} cannot be read: {error}") from error
    digest = hashlib.sha256(b"hotswap-base-1\n")
    digest.update(_line("config", _architecture(config)))
    tensors = {name: (path, info) for path, infos in headers.items() for name, info in infos.items()}
    for name in sorted(tensors):
        path, info = tensors[name]
        digest.update(_line(name, [info.dtype, list(info.shape)]))
        digest.update(_sample(path, info))
    return digest.hexdigest()


def common_type(directory: Path) -> str:
    """The float type, as torch names it, that all weights in ``directory`` are saved in; float32 where they differ.

    Raises BaseModelError when they cannot be read. Constants of weights that were saved quantized are none of them.
    """
    found = {
        _TYPES[info.dtype]
        for path in _weight_files(directory)
        for name, info in _header(path).items()
        if info.dtype in _TYPES and name.endswith((".weight", ".bias"))
    }
    return found.pop() if len(found) == 1 else "float32"


def _header(path: Path) -> Mapping[str, TensorInfo]:
    try:
        return read_header(path, _LIMITS)
    except PackageError as error:
        raise BaseModelError(f"the base model in {path.parent} cannot be read: {error}") from error


def template_sha256(text: str) -> str:
    """Hex SHA-256 of a chat template's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for key, value in config.items():
        if key not in _UNRELATED and value is not None:
            out[key] = _architecture(value) if isinstance(value, dict) else value
    return out


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _INDEX).is_file():
        shards = read_object(directory / _INDEX, _LIMITS.max_header_bytes).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise BaseModelError(f"{directory / _INDEX} has no weight_map of tensor names to file names")
        files = [directory / name for name in sorted(set(shards.values()))]
    else:
        files = [directory / _SINGLE]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise BaseModelError(
            f"{directory} lacks {quote(missing[0])}; base models are read from safetensors files only "
            "(save the model again with save_pretrained, or download it completely)"
        )
    return files


def _sample(path: Path, info: TensorInfo) -> bytes:
    """All of a small tensor; windows at equal distances, first and last bytes included, of a large one."""
    with path.open("rb") as file:
        if info.nbytes <= _WHOLE:
            file.seek(info.begin)
            return file.read(info.nbytes)
        out = bytearray()
        for i in range(_WINDOWS):
            file.seek(info.begin + i * (info.nbytes - _WINDOW) // (_WINDOWS - 1))
            out += file.read(_WINDOW)
        return bytes(out)


def _line(name: str, value: object) -> bytes:
    return json.dumps([name, value], separators=(",", ":"), sort_keys=True).encode() + b"\n"
