"""Computes a step by a plan: about ten calls a layer, whatever is in the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hotkernels.activation import activated, gated
from hotkernels.rotary import rotate
from server.model.layout import Assembled
from server.model.lean.angles import Table
from server.model.lean.parts import HeadNorm, Norm, Projection
from server.model.lean.plan import AttentionPlan, LayerPlan, MlpPlan, Place, Plan
from server.model.step import Step

Angles = tuple[Tensor, Tensor]


class LeanDecoder:
    """A plan, ready to run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tables = [Table(table) for table in plan.tables]
        self._embed: Any = plan.embedding.module
        self._layers = [_Layer(index, layer) for index, layer in enumerate(plan.layers)]
        self._norm = None if plan.norm is None else Norm(plan.norm)
        self._head = Projection([plan.head])

    @property
    def has_exact_rows(self) -> bool:
        """Whether with native kernels nothing depends on other rows: what runs as the model's own modules might."""
        own_parts = all(isinstance(layer.mlp, MlpPlan) for layer in self._plan.layers)
        return own_parts and all(table.is_fixed for table in self._plan.tables)

    def logits(self, batch: Assembled) -> Tensor:
        """The logits of the rows that are wanted, [n, vocab_size]. Only inside of ``computing(batch.step)``."""
        step, stream = batch.step, self._embed(batch.input_ids)
        if self._plan.embedding_scale != 1.0:
            stream *= self._plan.embedding_scale
        angles = [table.rows(stream, batch.positions, step.num_positions) for table in self._tables]
        added: Tensor | None = None
        for layer in self._layers:
            added = layer(stream, added, angles, step)
        return self._logits(stream, added, batch)

    def _logits(self, stream: Tensor, added: Tensor | None, batch: Assembled) -> Tensor:
        rows = batch.logits_rows
        x = stream.index_select(0, rows)
        if added is not None:
            x.add_(added.index_select(0, rows), alpha=self._plan.layers[-1].scale)
        if self._norm is not None:
            x = self._norm(x, batch.step, at_head=True)
        y = self._head(x, batch.step, at_head=True)
        if self._plan.softcap:
            return y.div_(self._plan.softcap).tanh_().mul_(self._plan.softcap)
        return y if self._plan.logit_scale == 1.0 else y.mul_(self._plan.logit_scale)


class _Layer:
    def __init__(self, index: int, plan: LayerPlan) -> None:
        self._plan = plan
        self._attention = _Attention(index, plan.attention)
        self._mlp = _Mlp(plan.mlp) if isinstance(plan.mlp, MlpPlan) else _Whole(plan.mlp)
        norms = (plan.pre_attention, plan.post_attention, plan.pre_mlp, plan.post_mlp)
        self._pre_attention, self._post_attention, self._pre_mlp, self._post_mlp = (
            None if norm is None else Norm(norm) for norm in norms
        )

    def __call__(self, stream: Tensor, added: Tensor | None, angles: list[Angles], step: Step) -> Tensor:
        """Take in what the layer before ``added``; what this one adds comes back, not yet in ``stream``."""
        plan = self._plan
        x = _normed(self._pre_attention, stream, added, plan.scale, step)
        a = self._attention(x, angles, step)
        if self._post_attention is not None:
            a = self._post_attention(a, step)
        if plan.is_parallel:
            x = x if plan.shares_norm else _normed(self._pre_mlp, stream, None, plan.scale, step)
            b = self._mlp(x, step)
            stream.add_(a, alpha=plan.scale)
        else:
            b = self._mlp(_normed(self._pre_mlp, stream, a, plan.scale, step), step)
        return b if self._post_mlp is None else self._post_mlp(b, step)


def _normed(norm: Norm | None, stream: Tensor, added: Tensor | None, scale: float, step: Step) -> Tensor:
    """The norm of ``stream`` after ``added`` went into it."""
    if norm is not None:
        return norm(stream, step) if added is None else norm(added, step, stream, scale)
    return stream if added is None else stream.add_(added, alpha=scale)


class _Attention:
    def __init__(self, index: int, plan: AttentionPlan) -> None:
        self._index, self._plan = index, plan
        self._inputs, self._output = Projection(plan.inputs), Projection([plan.output])
        self._q_norm = None if plan.q_norm is None else HeadNorm(plan.q_norm)
        self._k_norm = None if plan.k_norm is None else HeadNorm(plan.k_norm)
        self._keys = slice(plan.num_heads, plan.num_heads + plan.num_kv_heads)

    def __call__(self, x: Tensor, angles: list[Angles], step: Step) -> Tensor:
        plan, keys = self._plan, self._keys
        heads = self._inputs(x, step).view(len(x), -1, plan.head_dim)  # queries, then keys, then values
        q, k = heads[:, : keys.start], heads[:, keys]
        if not plan.norm_is_last:
            self._norm(q, k, step)
        if plan.table is not None:
            rotate(heads[:, : keys.stop], *angles[plan.table], interleaved=plan.interleaved)
        if plan.norm_is_last:
            self._norm(q, k, step)
        y = self._attend(q, k, heads[:, keys.stop :], step)
        return self._output(y.view(len(x), -1), step)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        assert step.sequences is not None, "a plan runs on the CPU"
        step.cache.write(self._index, step.slots, k, v)
        return step.cache.attend(self._index, q, step.sequences, self._plan.rule)

    def _norm(self, q: Tensor, k: Tensor, step: Step) -> None:
        if self._q_norm is not None:
            self._q_norm(q, step)
        if self._k_norm is not None:
            self._k_norm(k, step)


class _Mlp:
    def __init__(self, plan: MlpPlan) -> None:
        self._inputs, self._output = Projection(plan.inputs), Projection([plan.output])
        self._activation, self._kind = gated if plan.is_gated else activated, plan.activation

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        return self._output(self._activation(self._inputs(x, step), self._kind), step)


class _Whole:
    """An MLP that runs as the model's own module, such as routed experts."""

    def __init__(self, place: Place) -> None:
        self._module: Any = place.module

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        y = self._module(x[None])
        y = y[0] if isinstance(y, tuple) else y
        assert isinstance(y, Tensor)
        return y.view(x.shape)
