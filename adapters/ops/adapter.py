"""One adapter, ready to run: its ops by module, and what stands before the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.nn.functional import linear

from adapters.ops.op import Op


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


@dataclass(frozen=True, eq=False)
class Head:
    """A linear map of the adapter's own behind the last norm, in the place of the base's output head.

    Semantics: a hidden state ``h`` gives ``weight h + bias``.
    Shape: ``weight`` [num_labels, hidden_size], ``bias`` [num_labels].
    """

    weight: Tensor
    bias: Tensor | None = None

    def outputs(self, hidden: Tensor) -> Tensor:
        """What it gives for ``hidden`` [n, hidden_size] in float32: [n, num_labels]."""
        return linear(hidden, self.weight.float(), None if self.bias is None else self.bias.float())

    def map(self, fn: Callable[[Tensor], Tensor]) -> Head:
        """The same with ``fn`` applied to every tensor."""
        return Head(fn(self.weight), None if self.bias is None else fn(self.bias))


@dataclass(frozen=True, eq=False)
class Adapter:
    """Ops by module name, in the order they act, at most one of ``prefix`` and ``prompt``, and perhaps a ``head``.

    A tensor may be part of several ops (some kinds share factors between layers); it is kept and counted once.
    ``vocab_size`` is how many token ids the adapter can read, and ``num_logits`` how many it can write, where they
    differ from the base's (None). Where there are ``invocation_tokens``, the ops act only from the last place on where
    these stand in the prompt, and nowhere when they do not.
    """

    kind: str
    ops: Mapping[str, tuple[Op, ...]] = field(default_factory=dict)
    prefix: PrefixKV | None = None
    prompt: PromptEmbeds | None = None
    vocab_size: int | None = None
    num_logits: int | None = None
    invocation_tokens: tuple[int, ...] = ()
    head: Head | None = None

    @property
    def num_virtual_tokens(self) -> int:
        """Positions that stand before the prompt (0 for kinds without any)."""
        if self.prefix is not None:
            return self.prefix.keys.shape[1]
        return self.prompt.embeds.shape[0] if self.prompt is not None else 0

    @property
    def has_exact_rows(self) -> bool:
        """Whether with native kernels a row comes out the same to the last bit, whatever other rows there are."""
        return all(op.HAS_EXACT_ROWS for ops in self.ops.values() for op in ops)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every tensor of the adapter, once."""
        found = [tensor for ops in self.ops.values() for op in ops for tensor in op.tensors()]
        if self.prefix is not None:
            found += [self.prefix.keys, self.prefix.values]
        if self.prompt is not None:
            found.append(self.prompt.embeds)
        if self.head is not None:
            found += [tensor for tensor in (self.head.weight, self.head.bias) if tensor is not None]
        return list({id(tensor): tensor for tensor in found}.values())

    def shared(self) -> list[Tensor]:
        """Those tensors, once, that other adapters may have as well."""
        found = [tensor for ops in self.ops.values() for op in ops for tensor in op.shared()]
        return list({id(tensor): tensor for tensor in found}.values())

    def map(self, fn: Callable[[Tensor], Tensor]) -> Adapter:
        """The same adapter with ``fn`` applied to every tensor (a move, a cast); shared tensors stay shared."""
        done: dict[int, Tensor] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = fn(tensor)
            return done[id(tensor)]

        return replace(
            self,
            ops={name: tuple(op.map(once) for op in ops) for name, ops in self.ops.items()},
            prefix=None if self.prefix is None else PrefixKV(once(self.prefix.keys), once(self.prefix.values)),
            prompt=None if self.prompt is None else PromptEmbeds(once(self.prompt.embeds)),
            head=None if self.head is None else self.head.map(once),
        )
