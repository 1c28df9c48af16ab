"""The Dense layers that sentence-transformers puts behind pooling. Imports no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import MODULE_WEIGHTS, module_file
from adapters.package.header import WEIGHT_DTYPES, TensorInfo, read_header
from adapters.quoting import quote

Array = NDArray[np.float32]
MAX_WIDTH = 16_384
_KEPT = 16  # layers whose weights stay in memory
_SENTENCE = "sentence_embedding"
_erf = np.frompyfunc(math.erf, 1, 1)


def _elu(x: Array) -> Any:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _gelu(x: Array) -> Any:
    return x * (1 + _erf(x / math.sqrt(2)).astype(np.float32)) / 2


def _sigmoid(x: Array) -> Any:
    return (1 + np.tanh(x / 2)) / 2


def _softmax(x: Array) -> Any:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# As torch makes them without arguments; numbers of any type.
_ACTIVATIONS: Mapping[str, Callable[[Array], Any]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": _gelu,
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
    "LeakyReLU": lambda x: np.where(x > 0, x, x * 0.01),
    "ELU": _elu,
    "Softmax": _softmax,
}


class UnservedModuleError(Exception):
    """Why a module is not served; the message ends a sentence."""


class DenseConfig(msgspec.Struct, frozen=True):
    """Its configuration, with sentence-transformers' defaults."""

    in_features: int
    out_features: int
    bias: bool = True
    activation_function: str | None = "torch.nn.modules.activation.Tanh"
    module_input_name: str | None = _SENTENCE
    module_output_name: str | None = None
    use_residual: bool = False


@dataclass(frozen=True)
class Dense:
    """``activation(x W^T + b)``, with ``residual`` also ``x``, itself or through a matrix of its own.

    ``path`` is its folder's, below the model's; ``digest`` that of the weights' file, so that equal ones are equal.
    """

    path: str
    in_features: int
    out_features: int
    activation: str
    digest: str
    residual: bool = False


@dataclass(frozen=True, eq=False)
class DenseWeights:
    """``weight`` [out, in], ``bias`` [out], ``residual`` [out, in] where there is one."""

    weight: Array
    bias: Array | None
    residual: Array | None


def read_dense(directory: Path, path: str, config: DenseConfig, limits: PackageLimits = DEFAULT_LIMITS) -> Dense:
    """The layer of ``config`` at ``path``, once its weights fit it.

    Raises UnservedModuleError for one that is not served, PackageError for a malformed one.
    """
    module, _, activation = (config.activation_function or "torch.nn.Identity").rpartition(".")
    if not module.startswith("torch.") or activation not in _ACTIVATIONS:
        raise UnservedModuleError(f"its module {quote(path)} has the activation {quote(config.activation_function)}")
    if {config.module_input_name or _SENTENCE, config.module_output_name or _SENTENCE} != {_SENTENCE}:
        raise UnservedModuleError(f"its module {quote(path)} changes other things than the vectors of texts")
    if not (0 < config.in_features <= MAX_WIDTH and 0 < config.out_features <= MAX_WIDTH):
        raise UnservedModuleError(f"its module {quote(path)} is wider than {MAX_WIDTH} features")
    file = module_file(directory, path, MODULE_WEIGHTS)
    if not file.is_file():
        raise UnservedModuleError(
            f"its module {quote(path)} has no {MODULE_WEIGHTS} (pickles are not read: save it with a newer version)"
        )
    infos = read_header(file, limits, dtypes=WEIGHT_DTYPES)
    shape = (config.out_features, config.in_features)
    wanted: dict[str, tuple[int, ...]] = {"linear.weight": shape}
    if config.bias:
        wanted["linear.bias"] = shape[:1]
    if config.use_residual and shape[0] != shape[1]:
        wanted["residual.weight"] = shape
    if {name: info.shape for name, info in infos.items()} != wanted:
        found = ", ".join(f"{name} {list(info.shape)}" for name, info in infos.items())
        raise PackageError(f"{path}/{MODULE_WEIGHTS} holds {quote(found)}, and its configuration asks for others")
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise PackageError.unreadable(file.name, error) from error
    return Dense(path, config.in_features, config.out_features, activation, digest, config.use_residual)


def through(layer: Dense, directory: Path, rows: Array) -> Array:
    """``rows`` [n, in_features] through ``layer`` of the model in ``directory``. Blocks; raises PackageError."""
    weights = _weights(layer, directory)
    out = rows @ weights.weight.T
    if weights.bias is not None:
        out += weights.bias
    made: Array = np.asarray(_ACTIVATIONS[layer.activation](out), np.float32)
    if layer.residual:
        made = made + (rows if weights.residual is None else rows @ weights.residual.T)
    return made


@lru_cache(maxsize=_KEPT)
def _weights(layer: Dense, directory: Path) -> DenseWeights:
    file = module_file(directory, layer.path, MODULE_WEIGHTS)
    infos = read_header(file, DEFAULT_LIMITS, dtypes=WEIGHT_DTYPES)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PackageError.unreadable(file.name, error) from error
    found = {name: _array(info, data) for name, info in infos.items()}
    return DenseWeights(found["linear.weight"], found.get("linear.bias"), found.get("residual.weight"))


def _array(info: TensorInfo, data: bytes) -> Array:
    part = data[info.begin : info.end]
    if info.dtype == "BF16":
        numbers = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(part, "<f2" if info.dtype == "F16" else "<f4").astype(np.float32)
    return numbers.reshape(info.shape)
