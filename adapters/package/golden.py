"""Golden logits: what the trained adapter answered to a few probe prompts, kept to check a server's answer against.

File: ``probe.<i>.input_ids`` int64 [length] and ``probe.<i>.logits`` float32 [vocab_size], those of the last position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import GOLDEN_FILE
from adapters.package.header import GOLDEN_DTYPES
from adapters.package.tensors import read_tensors


@dataclass(frozen=True, eq=False)
class GoldenLogits:
    """One probe prompt and its logits. Shape: ``input_ids`` [length] int64; ``logits`` [vocab_size] float32."""

    input_ids: Tensor
    logits: Tensor


def encode_golden(golden: Sequence[GoldenLogits]) -> bytes:
    """The bytes of a golden file."""
    tensors: dict[str, Tensor] = {}
    for i, one in enumerate(golden):
        tensors[f"probe.{i}.input_ids"] = one.input_ids.to("cpu", torch.int64).contiguous().clone()
        tensors[f"probe.{i}.logits"] = one.logits.detach().to("cpu", torch.float32).contiguous().clone()
    return bytes(save(tensors))


def read_golden(
    directory: Path, limits: PackageLimits = DEFAULT_LIMITS, *, of_head: bool = False
) -> tuple[GoldenLogits, ...]:
    """Those of the package in ``directory``, none without a golden file. PackageError for an unsound one.

    ``of_head``: the adapter has a head of its own, whose outputs the logits are.
    """
    path = directory / GOLDEN_FILE
    if not path.is_file():
        return ()
    tensors = read_tensors(path, limits, dtypes=GOLDEN_DTYPES)
    golden = []
    if len(tensors) > 2 * limits.max_golden:
        raise PackageError(f"{GOLDEN_FILE} holds {len(tensors)} tensors; at most {limits.max_golden} probes are read")
    for i in range(len(tensors) // 2):
        ids, logits = tensors.pop(f"probe.{i}.input_ids", None), tensors.pop(f"probe.{i}.logits", None)
        if ids is None or logits is None:
            raise PackageError(f"{GOLDEN_FILE} lacks probe.{i}.input_ids or probe.{i}.logits")
        if ids.dtype != torch.int64 or logits.dtype != torch.float32 or ids.dim() != 1 or logits.dim() != 1:
            raise PackageError(f"{GOLDEN_FILE}: probe {i} must be int64 [length] and float32 [vocab_size]")
        if bool((ids < 0).any()) or (not of_head and bool((ids >= logits.shape[0]).any())):
            raise PackageError(f"{GOLDEN_FILE}: probe {i} holds token ids outside of its vocabulary")
        golden.append(GoldenLogits(ids, logits))
    if tensors:
        raise PackageError(f"{GOLDEN_FILE} holds the unknown tensor {next(iter(tensors))!r}")
    return tuple(golden)
