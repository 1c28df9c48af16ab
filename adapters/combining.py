"""Several adapters as one: the weighted sum of what they add, where that is all they do.

Semantics: at every module ``y += sum over i of weight[i] * update[i](x)``. Of low-rank updates that is one update whose
factors stand side by side, of the sum of the ranks (peft's ``add_weighted_adapter`` with ``combination_type="cat"``).
A head, which one of them may have, is what it is, whatever the weight: it reads what all make of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from adapters.checkpoints import checkpoint
from adapters.compiling import as_saved
from adapters.errors import UnsupportedKindError
from adapters.ops import Adapter, LowRank, Op
from adapters.quoting import quote

KIND = "combination"
_ALONE = {
    "prefix": "its virtual tokens stand before the prompt",
    "prompt": "its virtual tokens stand before the prompt",
    "vocab_size": "it reads tokens of its own",
    "num_logits": "it writes tokens of its own",
    "invocation_tokens": "it acts only from its invocation tokens on",
}


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a combination. ``name`` is what whoever asked for it knows it by."""

    name: str
    adapter: Adapter
    weight: float


def combine(members: Sequence[Member]) -> Adapter:
    """The one adapter that adds what all ``members`` add, each times its weight; those of weight 0 add nothing.

    Tensors that a weight does not change are the members' own. Raises UnsupportedKindError, naming the first member
    that does anything but add, or has a second head.
    """
    for member in members:
        _check_adds(member)
    with_heads = [member for member in members if member.adapter.head is not None]
    if len(with_heads) > 1:
        raise _refusal(with_heads[1], f"it has a head of its own, and so has {with_heads[0].name}")
    by_module: dict[str, list[Op]] = {}
    for member in members:
        for module, ops in member.adapter.ops.items() if member.weight else ():
            checkpoint()
            weighted = ops if member.weight == 1 else [op.times(member.weight) for op in ops]
            by_module.setdefault(module, []).extend(weighted)
    halves = {tensor.dtype for member in members for tensor in member.adapter.tensors()}
    head = with_heads[0].adapter.head if with_heads else None
    combined = Adapter(KIND, {module: _side_by_side(ops) for module, ops in by_module.items()}, head=head)
    return as_saved(combined, halves & {torch.bfloat16, torch.float16})


def _check_adds(member: Member) -> None:
    """UnsupportedKindError when a member does anything but add to the outputs of modules."""
    adapter, own = (
        member.adapter,
        [field.name for field in fields(Adapter) if field.name not in ("kind", "ops", "head")],
    )
    reasons = [_ALONE.get(name, f"it has {name} of its own") for name in own if getattr(adapter, name)]
    reasons += [
        f"it changes {quote(module)} otherwise than by adding to its output"
        for module, ops in adapter.ops.items()
        if not all(op.PROPORTIONAL_TO for op in ops)
    ]
    if reasons:
        raise _refusal(member, reasons[0])


def _refusal(member: Member, reason: str) -> UnsupportedKindError:
    return UnsupportedKindError(
        f"{member.name} cannot be combined with other adapters: {reason} (kind {member.adapter.kind}). Name it alone, "
        "or combine adapters whose effects add, such as LoRA, LoHa, LoKr, VeRA or FourierFT"
    )


def _side_by_side(ops: Sequence[Op]) -> tuple[Op, ...]:
    """``ops`` of one module, its low-rank updates joined into one that stands first."""
    low_rank = [op for op in ops if type(op) is LowRank]
    if len(low_rank) < 2:
        return (*low_rank, *(op for op in ops if type(op) is not LowRank))
    a = _joined([op.a.mT for op in low_rank]).mT  # as files have it, and as products with few columns like it
    return LowRank(a, _joined([op.b for op in low_rank])), *(op for op in ops if type(op) is not LowRank)


def _joined(factors: Sequence[Tensor]) -> Tensor:
    """Factors by rank, in a type that holds the numbers of all."""
    dtypes = {factor.dtype for factor in factors}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return torch.cat([factor.to(dtype) for factor in factors])
