"""Weights as a GGUF file stores them: read out of its blocks, kept beside an imported base, found there again.

They lie in a file of safetensors form, under their transformers names. Its own name ends otherwise: other tools take
every ``*.safetensors`` of a directory for weights of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, ReaderTensor
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bases.errors import QuantizationError
from bases.finding import GGUF_BLOCKS
from hotkernels.linear import StoredWeight

BLOCKED = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0)
BLOCK = 32
_FLOATS = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.F16: torch.float16}
KEPT = (*BLOCKED, *_FLOATS)
_PARTS = ("codes", "scale", "minimum")


def stored_weight(data: NDArray[Any], kind: GGMLQuantizationType) -> StoredWeight:
    """The weight in a GGUF tensor of two dimensions, of a ``kind`` among KEPT: all of its numbers, none rounded.

    Semantics: a block is its scale d (fp16), of Q4_1 its minimum m (fp16), and 32 codes: of 4 bits element j stands in
    the low half of byte j and element j + 16 in its high half. Q4_0 is ``(code - 8) * d``, Q4_1 ``code * d + m``, Q8_0
    ``code * d``. ``-8 d`` is no rounding, nor is its sum with ``code * d``.
    Shape: ``data`` as GGUFReader gives it: [N, bytes of a row], or [N, K] of floats.
    """
    if kind in _FLOATS:
        return StoredWeight(torch.from_numpy(np.array(data)).to(_FLOATS[kind]))
    constants = 2 if kind == GGMLQuantizationType.Q4_1 else 1
    blocks = np.ascontiguousarray(data).reshape(data.shape[0], -1, 2 * constants + _code_bytes(kind))
    floats = torch.from_numpy(np.ascontiguousarray(blocks[..., : 2 * constants]).view(np.float16))
    codes = torch.from_numpy(np.array(blocks[..., 2 * constants :]))  # [N, K / 32, bytes]
    scale = floats[..., 0].contiguous()
    if kind == GGMLQuantizationType.Q8_0:
        return StoredWeight(codes.view(torch.int8).flatten(-2), scale)
    minimum = floats[..., 1].contiguous() if constants == 2 else -8 * scale
    values = torch.cat((codes & 0xF, codes >> 4), -1)  # [N, K / 32, 32]
    return StoredWeight((values[..., 0::2] | values[..., 1::2] << 4).flatten(-2), scale, minimum)


def _code_bytes(kind: GGMLQuantizationType) -> int:
    return BLOCK if kind == GGMLQuantizationType.Q8_0 else BLOCK // 2


def find_blocks(tensors: Iterable[ReaderTensor], model: nn.Module) -> dict[str, StoredWeight]:
    """The weights of ``model``'s linear maps and embeddings as ``tensors`` of a GGUF file store them, by name.

    ``model`` is what transformers made of the file. Its weights are found by what they hold, row by row: architectures
    have rows in another order than the file. A weight is only found whole, and when each of its numbers is that of the
    tensor in the model's type: what transformers merges, splits or changes has none, nor has what is of other kinds.
    """
    wanted = defaultdict(list)
    for name, weight in matrices(model):
        hashes = _row_hashes(weight)
        wanted[hash(np.sort(hashes).tobytes())].append((name, weight, hashes))
    found = {}
    for tensor in tensors:
        if tensor.tensor_type not in KEPT or len(tensor.shape) != 2:
            continue
        stored = stored_weight(tensor.data, tensor.tensor_type)
        hashes = _row_hashes(stored.dense().to(next(model.parameters()).dtype))
        if same := wanted.get(hash(np.sort(hashes).tobytes())):
            name, weight, theirs = same[0]
            moved = _reordered(stored, hashes, theirs)
            if torch.equal(moved.dense().to(weight.dtype), weight):
                found[name] = moved
                same.pop(0)
    return found


def matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights [out_features, in_features] of linear maps and embeddings; tied ones once, by their first name."""
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            weight = module.weight.detach()
            yield f"{name}.weight", weight.T if isinstance(module, Conv1D) else weight


def _reordered(stored: StoredWeight, given: NDArray[np.int64], wanted: NDArray[np.int64]) -> StoredWeight:
    """``stored``, whose rows have the hashes ``given``, with its rows in the order of ``wanted``."""
    order = np.empty_like(given)
    order[np.argsort(wanted, stable=True)] = np.argsort(given, stable=True)
    rows = torch.from_numpy(order)
    return stored.map(lambda tensor: tensor[rows])


def _row_hashes(weight: Tensor) -> NDArray[np.int64]:
    """Shape: [N]. Zeros of both signs are the same."""
    rows = (weight + 0).contiguous().view(torch.uint8).numpy()
    return np.array([hash(row.tobytes()) for row in rows])


def write_blocks(directory: Path, weights: Mapping[str, StoredWeight]) -> None:
    """Keep ``weights``, by name, beside the base in ``directory``."""
    tensors = {f"{name}.{part}": getattr(weight, part) for name, weight in weights.items() for part in _PARTS}
    save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, directory / GGUF_BLOCKS)


class StoredBlocks(Mapping[str, StoredWeight]):
    """What ``write_blocks`` kept, each weight read when it is asked for."""

    def __init__(self, directory: Path) -> None:
        try:
            file: Any = safe_open(directory / GGUF_BLOCKS, framework="pt")
        except FileNotFoundError as error:
            raise QuantizationError(
                f"the base in {directory} keeps no weights of a GGUF file, so it cannot be served or trained as gguf; "
                "import the file (again): hotswap base import FILE.gguf"
            ) from error
        self._file = file
        self._parts: frozenset[str] = frozenset(file.keys())

    def __getitem__(self, name: str) -> StoredWeight:
        codes, scale, minimum = (self._tensor(f"{name}.{part}") for part in _PARTS)
        if codes is None:
            raise KeyError(name)
        return StoredWeight(codes, scale, minimum)

    def __iter__(self) -> Iterator[str]:
        return (part.removesuffix(".codes") for part in sorted(self._parts) if part.endswith(".codes"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _tensor(self, name: str) -> Tensor | None:
        return self._file.get_tensor(name) if name in self._parts else None
