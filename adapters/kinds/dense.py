"""Updates that are whole matrices: their memory, and the smaller forms they may have.

The rule: an update is kept as its exact low-rank factors where these are known and weigh less than the matrix, as
single entries where they weigh less, and otherwise as the matrix. Nothing is approximated: a truncated SVD would serve
another adapter than the one uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.ops import AddOp, LowRank
from adapters.ops.matrices import Delta
from adapters.quoting import quote

BYTES = 4  # of a float32 or an int32


def dense_bytes(out_features: int, in_features: int) -> int:
    """What a whole matrix weighs in float32."""
    return BYTES * out_features * in_features


def factor_bytes(out_features: int, in_features: int, rank: int) -> int:
    """What two factors of a matrix weigh in float32."""
    return BYTES * rank * (out_features + in_features)


def check_memory(sizes: Mapping[str, int], kind: str, limits: PackageLimits) -> None:
    """PackageError when the updates, given by module as bytes in float32, are too large. To call before making any."""
    total = sum(sizes.values())
    if total > limits.max_dense_bytes:
        largest = max(sizes, key=lambda module: sizes[module])
        raise PackageError(
            f"the updates of this {kind} adapter take {total} bytes in float32, the largest ({quote(largest)}) "
            f"{sizes[largest]}; {limits.max_dense_bytes} are allowed (max_dense_bytes). Adapt fewer modules, use a "
            "kind with low-rank updates, or raise the limit"
        )


def factored(left: Tensor, right: Tensor) -> AddOp:
    """The update ``left @ right``, in the form that weighs less. Shape: [out_features, r], [r, in_features]."""
    (out_features, rank), in_features = left.shape, right.shape[1]
    if factor_bytes(out_features, in_features, rank) < dense_bytes(out_features, in_features):
        return LowRank(right.T, left.T.contiguous())
    return Delta((left @ right).T.contiguous())


def check_update(op: AddOp, module: str) -> AddOp:
    """``op``. PackageError when its numbers became infinite."""
    if all(bool(torch.isfinite(tensor).all()) for tensor in op.tensors()):
        return op
    raise PackageError(f"the update of module {quote(module)} is not finite: its tensors or its scale are too large")
