"""The header of a safetensors file, checked before any tensor is loaded. Imports no torch.

Layout: 8 bytes little-endian length n, n bytes JSON ``{name: {dtype, shape, data_offsets}}``, then the data, whose
offsets must cover it exactly, in order, without holes. A header of many tensors is megabytes of JSON: it is taken apart
entry by entry, as one call that parses all of it would keep every other thread waiting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from adapters.checkpoints import checkpoint
from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.quoting import describe_error, quote

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
WEIGHT_DTYPES = ("F32", "F16", "BF16")
GOLDEN_DTYPES = ("F32", "I64")
_MAX_NAME = 512
_COLONS = 4  # of one entry: a name and three keys
_METADATA_COLONS = 65_536


class TensorInfo(msgspec.Struct, frozen=True, gc=False):  # 50,000 tracked objects make the collector stop everyone
    """One tensor as the header describes it; ``begin`` and ``end`` are offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.begin


class _HeaderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_ENTRY = msgspec.json.Decoder(_HeaderEntry)


def read_header(
    path: Path, limits: PackageLimits, *, dtypes: Iterable[str] = DTYPE_BYTES, empty: bool = False
) -> dict[str, TensorInfo]:
    """The tensors of the file ``path``, by name, sorted. PackageError for anything unsound or beyond ``limits``.

    ``empty``: whether a tensor may have no elements.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size > limits.max_bytes:
                raise PackageError(f"{path.name} weighs {size} bytes; at most {limits.max_bytes} are read")
            raw, start = _read_json(file, path.name, size, limits)
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    raw.pop("__metadata__", None)  # for people; never built, it may be long
    if len(raw) > limits.max_tensors:
        raise PackageError(f"{path.name} holds {len(raw)} tensors; at most {limits.max_tensors} are read")
    allowed = frozenset(dtypes)
    infos = [_check(name, value, start, allowed, 0 if empty else 1, limits) for name, value in raw.items()]
    _check_cover(infos, start, size, path.name)
    return {info.name: info for info in sorted(infos, key=lambda info: info.name)}


def _read_json(file: BinaryIO, name: str, size: int, limits: PackageLimits) -> tuple[dict[str, msgspec.Raw], int]:
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or 8 + length > size:
        raise PackageError(f"{name} is not a safetensors file, or it is truncated")
    if length > limits.max_header_bytes:
        raise PackageError(f"{name} has a header of {length} bytes; at most {limits.max_header_bytes} are read")
    return _members(file.read(length), f"the header of {name}", limits), 8 + length


def _members(data: bytes, what: str, limits: PackageLimits) -> dict[str, msgspec.Raw]:
    """The entries of the object ``data``, each still JSON. PackageError, naming ``what``, for anything else."""
    if data.count(b":") > _COLONS * limits.max_tensors + _METADATA_COLONS:
        raise PackageError(f"{what} has more entries than {limits.max_tensors} tensors ask for")
    try:
        found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise PackageError(f"{what} must hold a JSON object") from error
    except RecursionError as error:
        raise PackageError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise PackageError(f"{what} is not valid JSON: {describe_error(error)}") from error
    if data.count(b'"data_offsets"') > len(found):
        raise PackageError(f"{what} names a tensor twice, or says twice where it lies")
    return found


def _check(  # noqa: PLR0917 - one call, in order
    name: str, value: msgspec.Raw, start: int, dtypes: frozenset[str], smallest: int, limits: PackageLimits
) -> TensorInfo:
    checkpoint()
    if not name or len(name) > _MAX_NAME or not name.isascii() or not name.isprintable():
        raise PackageError(f"the tensor name {quote(name)} is empty, too long, or not printable ASCII")
    try:
        entry = _ENTRY.decode(value)
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError among them
        raise PackageError(f"the header entry of tensor {quote(name)} is malformed: {describe_error(error)}") from error
    if entry.dtype not in dtypes:
        raise PackageError(f"tensor {quote(name)} has dtype {quote(entry.dtype)}; read are {', '.join(sorted(dtypes))}")
    if len(entry.shape) > limits.max_dims:
        raise PackageError(
            f"tensor {quote(name)} has {len(entry.shape)} dimensions; at most {limits.max_dims} are read"
        )
    if any(extent < smallest for extent in entry.shape):
        raise PackageError(f"tensor {quote(name)} is empty; was it saved before sharded parameters were gathered?")
    begin, end = entry.data_offsets
    if end - begin != math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]:
        raise PackageError(f"tensor {quote(name)}: its shape, dtype and bytes do not agree")
    return TensorInfo(name, entry.dtype, tuple(entry.shape), start + begin, start + end)


def _check_cover(infos: list[TensorInfo], start: int, size: int, name: str) -> None:
    expected = start
    for info in sorted(infos, key=lambda info: info.begin):
        if info.begin != expected:
            raise PackageError(f"{name}: tensor {quote(info.name)} overlaps another or leaves a hole")
        expected = info.end
    if expected != size:
        raise PackageError(f"{name} is truncated or padded: {size} bytes where its header describes {expected}")
