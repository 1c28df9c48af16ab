"""Reads the tensors of a safetensors file: header checked first, then loaded, then checked for NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from adapters.checkpoints import checkpoint
from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.header import WEIGHT_DTYPES, TensorInfo, read_header
from adapters.quoting import quote

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "U16": torch.uint16, "I16": torch.int16,
    "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32,
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


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
    return load_tensors(path, read_header(path, limits, dtypes=dtypes, empty=empty))


def load_tensors(path: Path, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Those that the header of ``path`` describes, in that order. PackageError for values that are not finite, too.

    Each is copied into memory of its own. Mapped memory would go on showing what the file becomes, and end the process
    when the file is cut.
    """
    try:
        with path.open("rb") as file:
            loaded = {name: _read(file, info, path.name) for name, info in infos.items()}
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    check_finite(loaded)
    return loaded


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _read(file: BinaryIO, info: TensorInfo, name: str) -> Tensor:
    checkpoint()
    memory = torch.empty(info.nbytes, dtype=torch.uint8)
    file.seek(info.begin)
    if info.nbytes and file.readinto(memory.numpy()) != info.nbytes:  # type: ignore[attr-defined]
        raise PackageError(f"{name} became shorter while it was read")
    return memory.view(_DTYPES[info.dtype]).reshape(info.shape)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """PackageError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        checkpoint()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PackageError(f"tensor {quote(name)} holds NaN or infinity; the training diverged")
