"""The op vocabulary: every kind of adapter becomes a few of these (one dataclass per op).

An op's docstring is its specification. How ops run over a mixed batch is in ``adapters.batch``:
``reference`` is the naive fp32 loop, the others are fast. Notation: ``x`` the input rows of a module,
``y`` its output rows, both for the rows of one adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank update of a linear map.

    Semantics: ``y += (x @ a.T) @ b.T``; the scale (alpha / r, or alpha / sqrt(r)) is folded into ``b`` at load.
    Shape: ``a`` [r, in_features]; ``b`` [out_features, r].
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """The number of rows of ``a``."""
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class Bias:
    """A constant added to a module's output.

    Semantics: ``y += delta``; ``delta`` is the trained bias minus the base's own bias.
    Shape: ``delta`` [out_features].
    """

    delta: Tensor


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """Keys and values that stand before the prompt in every layer.

    Semantics: position ``p < num_virtual_tokens`` of layer ``l`` holds ``keys[l, p]``, ``values[l, p]``; keys are
    after the rotary embedding; the prompt's own positions start at ``num_virtual_tokens``.
    Shape: ``keys``, ``values`` [num_layers, num_virtual_tokens, num_kv_heads, head_dim].
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Embedding rows that stand before the prompt.

    Semantics: position ``p < num_virtual_tokens`` has input embedding ``embeds[p]``; prompt positions follow.
    Shape: ``embeds`` [num_virtual_tokens, hidden_size].
    """

    embeds: Tensor


LinearOp = LowRank | Bias


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, ready to run: ops by module, and at most one of ``prefix`` and ``prompt``."""

    kind: str
    linear: Mapping[str, tuple[LinearOp, ...]] = field(default_factory=dict)
    prefix: PrefixKV | None = None
    prompt: PromptEmbeds | None = None

    @property
    def num_virtual_tokens(self) -> int:
        """Positions that stand before the prompt (0 for kinds without any)."""
        if self.prefix is not None:
            return self.prefix.keys.shape[1]
        return self.prompt.embeds.shape[0] if self.prompt is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every tensor of the adapter."""
        out: list[Tensor] = []
        for ops in self.linear.values():
            for op in ops:
                out += [op.a, op.b] if isinstance(op, LowRank) else [op.delta]
        if self.prefix is not None:
            out += [self.prefix.keys, self.prefix.values]
        if self.prompt is not None:
            out.append(self.prompt.embeds)
        return out

    def map(self, fn: Callable[[Tensor], Tensor]) -> Adapter:
        """The same adapter with ``fn`` applied to every tensor (a move, a cast)."""

        def op(op: LinearOp) -> LinearOp:
            return LowRank(fn(op.a), fn(op.b)) if isinstance(op, LowRank) else Bias(fn(op.delta))

        return Adapter(
            kind=self.kind,
            linear={name: tuple(op(o) for o in ops) for name, ops in self.linear.items()},
            prefix=None if self.prefix is None else PrefixKV(fn(self.prefix.keys), fn(self.prefix.values)),
            prompt=None if self.prompt is None else PromptEmbeds(fn(self.prompt.embeds)),
        )
