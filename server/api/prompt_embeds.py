"""Embeddings in the place of a prompt, as clients send them: one tensor in base64, as torch saves it or as safetensors.

Nothing that comes is run, and torch is not needed to read it: of a file of torch's the few names that a tensor consists
of are known, and any other is refused.
"""

from __future__ import annotations

import binascii
import io
import pickle
import pickletools
import zipfile
from base64 import b64decode
from collections import OrderedDict
from math import prod
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from server.errors import InvalidRequestError

MAX_DESCRIPTION = 16 * 1024  # bytes of what says how numbers are a tensor
_HOW = "send torch.save of a tensor [tokens, size], or safetensors with one, in base64"
_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_CODES = {
    *("PROTO", "GLOBAL", "BINPUT", "BINGET", "BINUNICODE", "BINPERSID", "BININT", "BININT1", "BININT2", "LONG1"),
    *("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "NEWFALSE", "NEWTRUE", "REDUCE", "STOP"),
}
"""Instructions of a pickle that a tensor is written with. None allots memory by a number, or changes what there is."""
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


class _WrongTensorError(Exception):
    """What came is no tensor that is read here; the message ends the sentence about it."""


class _Tensor(NamedTuple):
    """Where a tensor's numbers lie among those of its type in ``storage``; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Storage(NamedTuple):
    kind: str
    key: str


def read_embeds(text: str, size: int, param: str) -> tuple[int, bytes]:
    """How many tokens the embeddings in ``text`` stand for, and they: little-endian float32 [tokens, size].

    Raises InvalidRequestError, of the field ``param``.
    """
    try:
        numbers = _numbers(b64decode(text, validate=True))
        if numbers.ndim == 3 and len(numbers) == 1:
            numbers = numbers[0]
        if numbers.ndim != 2 or numbers.shape[1] != size or not len(numbers):
            shape = ", ".join(map(str, numbers.shape))
            raise _WrongTensorError(f"is a tensor [{shape}], and must be [tokens, {size}] for this base")
        if not np.isfinite(numbers).all():
            raise _WrongTensorError("holds numbers that are not finite")
    except binascii.Error as error:
        raise InvalidRequestError(f"{param}: is no base64; {_HOW}", param=param) from error
    except _WrongTensorError as error:
        raise InvalidRequestError(f"{param}: {error}", param=param) from error
    return len(numbers), numbers.astype("<f4").tobytes()


def _numbers(content: bytes) -> NDArray[np.float32]:
    return _saved_by_torch(content) if content.startswith(b"PK") else _of_safetensors(content)


def _of_safetensors(content: bytes) -> NDArray[np.float32]:
    """Format: <github.com/huggingface/safetensors>, the length of a JSON object, that object, numbers."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_DESCRIPTION, len(content) - 8):
        raise _WrongTensorError(f"is no tensor; {_HOW}")
    try:
        header = msgspec.json.decode(content[8 : 8 + length], type=dict[str, dict[str, Any]])
        header.pop("__metadata__", None)
        (told,) = header.values()
        entry = msgspec.convert(told, _Entry)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _WrongTensorError(f"is no tensor; {_HOW}") from error
    start, stop = entry.data_offsets
    data = content[8 + length :][start:stop]
    is_whole = min(entry.shape, default=0) >= 0 and len(data) == stop - start
    if not is_whole or prod(entry.shape) * _width(entry.dtype) != len(data):
        raise _WrongTensorError("is a tensor of another size than its shape says")
    return _as_float32(data, entry.dtype).reshape(entry.shape)


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _saved_by_torch(content: bytes) -> NDArray[np.float32]:
    """An archive of torch.save: a pickle that says what the tensor is, and a file of its numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise _WrongTensorError(f"is compressed; {_HOW}")
            if archive.getinfo(names["data.pkl"]).file_size > MAX_DESCRIPTION:
                raise _WrongTensorError(f"holds more than a tensor; {_HOW}")
            if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
                raise _WrongTensorError("has big-endian numbers; send little-endian ones")
            tensor = _unpickled(archive.read(names["data.pkl"]))
            data = archive.read(names[f"data/{tensor.storage.key}"])
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _WrongTensorError(f"is no tensor; {_HOW}") from error
    return _strided(_as_float32(data, tensor.storage.kind), tensor)


def _strided(numbers: NDArray[np.float32], tensor: _Tensor) -> NDArray[np.float32]:
    sizes = (*tensor.shape, *tensor.strides, tensor.offset)
    if len(tensor.shape) != len(tensor.strides) or not all(type(one) is int and one >= 0 for one in sizes):
        raise _WrongTensorError(f"is no tensor; {_HOW}")
    last = tensor.offset + sum((count - 1) * step for count, step in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape or last >= len(numbers) or prod(tensor.shape) > len(numbers):
        raise _WrongTensorError("is a tensor of another size than its shape says")
    strides = [step * numbers.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows what a plain tensor is made of, and nothing else that could be called."""

    @override
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        what = f"{module[:40]}.{name[:40]}"
        raise _WrongTensorError(f"holds {what}, which is not read here; {_HOW}, in float32, float16 or bfloat16")

    @override
    def persistent_load(self, pid: Any, /) -> Any:
        match pid:
            case ("storage", str(kind), str(key), str(), int()):
                return _Storage(kind, key)
        raise _WrongTensorError(f"is no tensor; {_HOW}")


def _rebuilt(*parts: Any) -> _Tensor:
    match parts:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            return _Tensor(storage, offset, shape, strides)
    raise _WrongTensorError(f"is no tensor; {_HOW}")


def _unpickled(content: bytes) -> _Tensor:
    try:
        if strange := {code.name for code, _, _ in pickletools.genops(content)} - _CODES:
            raise _WrongTensorError(f"holds more than a plain tensor ({min(strange)}); {_HOW}")
        found = _Unpickler(io.BytesIO(content)).load()
    except _WrongTensorError:
        raise
    except Exception as error:  # whatever wrong bytes make of it
        raise _WrongTensorError(f"is no tensor; {_HOW}") from error
    if not isinstance(found, _Tensor):
        raise _WrongTensorError(f"holds no tensor alone; {_HOW}")
    return found


def _width(kind: str) -> int:
    if kind not in _WIDTHS:
        raise _WrongTensorError(f"is of the type {kind[:16]}; send float32, float16 or bfloat16")
    return _WIDTHS[kind]


def _as_float32(data: bytes, kind: str) -> NDArray[np.float32]:
    if len(data) % _width(kind):
        raise _WrongTensorError("is a tensor of another size than its shape says")
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, "<f2" if kind == "F16" else "<f4").astype("<f4")
