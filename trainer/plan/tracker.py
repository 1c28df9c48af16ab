"""Follows the memory of computations on the meta device: what is allocated when, and what lives at the peak.

Every operation that the real step would run is run here too, on shapes. So nothing has to be known of architectures and
methods: what autograd keeps for backward, what gradient checkpointing drops, what an adapter casts, all of it happens.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from trainer.plan.meta import ScalarsAreZero


class MemoryTracker(ScalarsAreZero):  # type: ignore[no-untyped-call]
    """Counts the bytes of meta tensors made inside, by the ``phase`` in which they were made.

    ``known`` tensors were there before and are not counted. ``live`` is what is held now and ``most`` the most that was
    held of each phase, ``peak`` the most of all together. Tensors on the CPU (labels, indices) may meet meta tensors;
    they are small and not counted.
    """

    def __init__(self, known: Iterable[Tensor], phase: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.live: Counter[str] = Counter()
        self.peak = 0
        self.most: Counter[str] = Counter()
        self._total = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            storage = tensor.untyped_storage()
            self._seen[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and count what it allocates."""
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        except RuntimeError:  # a label or an index on the CPU met a meta tensor, which is no error on a real device
            out = super().__torch_dispatch__(func, types, *tree_map_only(Tensor, _to_meta, (args, kwargs or {})))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.is_meta:
                self._count(value)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._seen:
            size, phase = storage.nbytes(), self.phase
            self._seen[key] = weakref.ref(storage, lambda _gone: self._release(key, size, phase))
            self.live[phase] += size
            self._total += size
            self.peak = max(self.peak, self._total)
            self.most[phase] = max(self.most[phase], self.live[phase])

    def _release(self, key: int, size: int, phase: str) -> None:
        del self._seen[key]
        self.live[phase] -= size
        self._total -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as real devices run it: without the matrix of all pairs, which the meta device would write out.

    The function itself is replaced, because a TorchFunctionMode does not reach layers that are recomputed in backward.
    """
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def _attention(  # noqa: PLR0917 - the signature is torch's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's kernels for the CPU: a mask of booleans becomes one of floats for every layer, and is kept."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta or tensor.dim() == 0 else torch.empty_like(tensor, device="meta")
