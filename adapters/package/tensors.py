"""Reads the tensors of a safetensors file: header checked first, then loaded, then checked for NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.header import WEIGHT_DTYPES, read_header
from adapters.quoting import describe_error, quote


def read_tensors(
    path: Path,
    limits: PackageLimits = DEFAULT_LIMITS,
    *,
    dtypes: Iterable[str] = WEIGHT_DTYPES,
    empty: bool = False,
) -> dict[str, Tensor]:
    """The tensors of the file ``path``, by name, sorted, on the CPU. PackageError for every unsound file.

    ``empty``: whether a tensor may have no elements.
    """
    infos = read_header(path, limits, dtypes=dtypes, empty=empty)
    try:
        loaded: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PackageError(f"{path.name} cannot be read: {describe_error(error)}") from error
    if set(loaded) != set(infos):
        raise PackageError(f"{path.name} changed while it was read")
    check_finite(loaded)
    return {name: loaded[name] for name in infos}


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """PackageError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PackageError(f"tensor {quote(name)} holds NaN or infinity; the training diverged")
