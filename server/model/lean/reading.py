"""Reads a plan from a traced run: every fact is one that the model showed, and is recomputed before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from bases.model import adaptable_modules, expert_modules, router_modules
from hotkernels.activation import Activation, activated_torch
from hotkernels.norm import rms_norm_torch
from hotkernels.rotary import rotate_torch
from server.model.families import PATCHES
from server.model.lean.angles import angles
from server.model.lean.parts import packed
from server.model.lean.plan import MOST_TABLES, AttentionPlan, LayerPlan, MlpPlan, NormPlan, Place, Plan, TablePlan
from server.model.lean.trace import Attended, Call, Trace, trace

_Table = tuple[TablePlan, Tensor, Tensor]  # with its cosines and sines of the traced run
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


class NoPlanError(Exception):
    """The model does not have the common shape; the message says where."""


@torch.inference_mode()
def read_plan(model: PreTrainedModel) -> Plan:
    """The plan of ``model``, whose modules must be unchanged. Raises NoPlanError."""
    if model.config.model_type in PATCHES:
        raise NoPlanError("its attention is patched")
    try:
        traced = trace(model)
    except Exception as error:
        raise NoPlanError(f"it cannot be traced ({type(error).__name__}: {error})") from error
    plan = _Reader(traced, model).plan()
    _check_coverage(model, plan)
    for place in places(plan):
        if isinstance(place.module, nn.Linear) and packed(place.module) is None:
            raise NoPlanError(f"{place.name} keeps its weight as {type(place.module).__name__}, which no kernel knows")
    return plan


@dataclass(frozen=True, eq=False)
class _LayerCalls:
    """A layer's own call, its attention's, and those of its modules before and after that."""

    own: Call
    attended: Attended
    before: Sequence[Call]
    after: Sequence[Call]


class _Reader:
    """Reads one trace. Facts that are expected and not found are a NoPlanError."""

    def __init__(self, traced: Trace, model: PreTrainedModel) -> None:
        self._traced, self._calls, self._model = traced, traced.calls, model
        self._tables = _distinct(
            _tables(traced.calls, int(getattr(model.config, "max_position_embeddings", 0) or 2048))
        )
        if len(self._tables) > MOST_TABLES:
            raise NoPlanError(f"it turns by {len(self._tables)} tables of angles, more than {MOST_TABLES}")

    def plan(self) -> Plan:
        """The whole decoder."""
        embedding = _of(self._calls, self._model.get_input_embeddings())
        head = _of(self._calls, self._model.get_output_embeddings())
        layers = self._layer_calls()
        x = layers[0].own.x
        scale = _factor(torch.zeros_like(embedding.y), embedding.y, x, "the embedding")
        plans = []
        for calls in layers:
            _expect(_same(calls.own.x, x), f"{calls.own.name} is not given what the layer before it gave")
            plans.append(self._layer(calls))
            x = calls.own.y
        norm = _norm_to(self._calls, head.x)
        _expect(_same(x, norm.x if norm else head.x), "something stands between the last layer and the last norm")
        logit_scale, softcap = self._after_head(head.y[0])
        tables = tuple(table for table, _, _ in self._tables)
        last = _read_norm(norm) if norm else None
        return Plan(_place(embedding), scale, tables, tuple(plans), last, _place(head), logit_scale, softcap)

    def _layer_calls(self) -> list[_LayerCalls]:
        """The calls inside of each layer."""
        attended = self._traced.attended
        name = next(
            (
                name
                for name, module in self._model.named_modules()
                if isinstance(module, nn.ModuleList) and attended and attended[0].name.startswith(f"{name}.0.")
            ),
            "",
        )
        _expect(bool(name), "no list of layers attends through transformers' AttentionInterface")
        found = []
        for index in range(len(self._model.get_submodule(name))):
            prefix = f"{name}.{index}"
            inside = [i for i, c in enumerate(self._calls) if c.name == prefix or c.name.startswith(f"{prefix}.")]
            own = [i for i in inside if self._calls[i].name == prefix]
            mine = [a for a in attended if a.name.startswith(f"{prefix}.")]
            _expect(own == inside[-1:] and [a.layer for a in mine] == [index], f"{prefix} does not attend once")
            before = [self._calls[i] for i in inside if i < mine[0].before]
            after = [self._calls[i] for i in inside[:-1] if i >= mine[0].before]
            found.append(_LayerCalls(self._calls[own[0]], mine[0], before, after))
        return found

    def _after_head(self, head: Tensor) -> tuple[float, float]:
        """What multiplies, and what caps the logits behind the head."""
        cap = getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)
        if cap and _close(torch.tanh(head / cap) * cap, self._traced.logits):
            return 1.0, float(cap)
        return _factor(torch.zeros_like(head), head, self._traced.logits, "the head"), 0.0

    def _layer(self, calls: _LayerCalls) -> LayerPlan:
        own, attended, inputs = calls.own, calls.attended, [call for call in calls.before if _is_linear(call)]
        output = next((c for c in calls.after if _is_linear(c) and _same(c.x, attended.y)), None)
        if not inputs or output is None or not all(_same(c.x, inputs[0].x) for c in inputs):
            raise NoPlanError(f"{own.name} projects otherwise than once before and once after it attends")
        norms = [call for call in (*calls.before, *calls.after) if _is_norm(call)]
        attention = self._attention(attended, inputs, output, norms)
        pre, post = _norm_to(norms, inputs[0].x), _norm_of(norms, output.y)
        _expect(_same(own.x, pre.x if pre else inputs[0].x), f"{own.name} changes its input before attention")
        behind = calls.after[calls.after.index(output) + 1 :]
        mlp, given, b = self._mlp(own, [c for c in behind if not attended.name.startswith(c.name)])
        pre_mlp, post_mlp = _norm_to(norms, given), _norm_of(norms, b)
        a, b = (post.y if post else output.y).view_as(own.x), (post_mlp.y if post_mlp else b).view_as(own.x)
        s = pre_mlp.x if pre_mlp else given
        is_parallel = _same(s, own.x)
        scale = _factor(own.x, b, own.y - a, own.name) if is_parallel else _factor(own.x, a, s, own.name)
        _expect(_close(own.x + scale * a + scale * b, own.y), f"{own.name} adds up otherwise")
        first, second, third, fourth = (_read_norm(n) if n else None for n in (pre, post, pre_mlp, post_mlp))
        shares = pre is not None and pre_mlp is pre
        return LayerPlan(attention, mlp, first, second, third, fourth, is_parallel, shares, scale)

    def _attention(
        self, attended: Attended, inputs: Sequence[Call], output: Call, norms: Sequence[Call]
    ) -> AttentionPlan:
        (heads, dim), kv = attended.q.shape[1:], attended.k.shape[1]
        widths = [heads * dim, kv * dim, kv * dim]
        _expect(attended.v.shape[-1] == dim, f"{attended.name} has values of another size than its keys")
        if len(inputs) == 1:
            raw = list(torch.split(inputs[0].y[0], widths, -1)) if inputs[0].y.shape[-1] == sum(widths) else []
        else:
            raw = [call.y[0] for call in inputs]
        shapes = [tensor.shape[-1] for tensor in raw]
        _expect(shapes == widths, f"{attended.name} does not project queries, keys and values")
        q, k, v = (tensor.view(len(attended.q), -1, dim) for tensor in raw)
        _expect(torch.equal(v, attended.v), f"{attended.name} changes its values")
        q_norm, turned_q, is_last = _head_norm(norms, q, attended.q)
        k_norm, turned_k, _ = _head_norm(norms, k, attended.k)
        table, interleaved = self._rotation(turned_q, turned_k, attended.name)
        first, second = (_read_norm(n) if n else None for n in (q_norm, k_norm))
        return AttentionPlan(
            tuple(map(_place, inputs)), _place(output), heads, kv, dim, first, second, is_last, table, interleaved,
            attended.rule,
        )  # fmt: skip

    def _rotation(self, q: tuple[Tensor, Tensor], k: tuple[Tensor, Tensor], name: str) -> tuple[int | None, bool]:
        """Which table turns ``q`` and ``k``, each before and after, and how; None when nothing does."""
        if torch.equal(*q) and torch.equal(*k):
            return None, False
        for index, (_, cos, sin) in enumerate(self._tables):
            for interleaved in (False, True):
                if all(_close(_rotated(x, cos, sin, interleaved), y) for x, y in (q, k)):
                    return index, interleaved
        raise NoPlanError(f"{name} turns queries and keys in a way of its own")

    def _mlp(self, own: Call, calls: Sequence[Call]) -> tuple[MlpPlan | Place, Tensor, Tensor]:
        """The part behind attention, what it is given and what it gives."""
        linears = [call for call in calls if _is_linear(call)]
        holders = {c.name.rpartition(".")[0] for c in calls}
        whole = next((c for c in calls if c.name in holders and c.name.count(".") == own.name.count(".") + 1), None)
        is_plain = whole is None or (bool(linears) and _same(whole.y, linears[-1].y))
        if is_plain and len(linears) in (2, 3) and all(_same(c.x, linears[0].x) for c in linears[:-1]):
            *first, last = linears
            sides = first[0].y.chunk(2, -1) if len(first) == 1 else [call.y for call in first]
            for kind in ACTIVATIONS:
                if sides[0].shape == last.x.shape and _close(activated_torch(sides[0], kind) * sides[1], last.x):
                    return MlpPlan(tuple(map(_place, first)), _place(last), True, kind), first[0].x, last.y
                if len(first) == 1 and _close(activated_torch(first[0].y, kind), last.x):
                    return MlpPlan((_place(first[0]),), _place(last), False, kind), first[0].x, last.y
        if whole is None:
            raise NoPlanError(f"{own.name} has no MLP behind its attention")
        return _place(whole), whole.x, whole.y


def _head_norm(norms: Sequence[Call], raw: Tensor, given: Tensor) -> tuple[Call | None, tuple[Tensor, Tensor], bool]:
    """The norm on the way from a projection to attention, what lies on the other side of it, and if it stands last."""
    for call in norms:
        if call.x.numel() != raw.numel():
            continue
        x, y = (_heads(tensor, raw) for tensor in (call.x, call.y))
        if torch.equal(x, raw):
            return call, (y, given), False
        if torch.equal(y, given):
            return call, (raw, x), True
    return None, (raw, given), False


def _heads(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` [1, T, H, D], [1, H, T, D] or [1, T, H * D] as ``like`` [T, H, D]."""
    if tensor.dim() == 4 and tensor.shape[1] != len(like):
        tensor = tensor.transpose(1, 2)
    return tensor.reshape(like.shape)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if 2 * cos.shape[-1] > x.shape[-1]:
        return torch.zeros_like(x)
    y = x.clone()
    rotate_torch(y, cos, sin, interleaved=interleaved)
    return y


def _tables(calls: Sequence[Call], most: int) -> Iterator[_Table]:
    """Modules that give a pair of equal shape from hidden states and positions, in every reading of their angles."""
    for call in calls:
        if len(call.outputs) != 2:
            continue
        cos, sin = call.outputs
        if not (isinstance(sin, Tensor) and cos.shape == sin.shape and cos.dim() == 3):
            continue
        extra = tuple(argument for argument in call.arguments if isinstance(argument, str))
        half = cos.shape[-1] // 2
        is_twice, is_paired = (torch.equal(*parts) for parts in (cos.split(half, -1), (cos[..., ::2], cos[..., 1::2])))
        halves: Literal["twice", "paired", "once"] = "twice" if is_twice else "paired" if is_paired else "once"
        plan = TablePlan(call.module, extra, halves, _is_fixed(call, extra, most))
        yield plan, *angles(plan, cos, sin)


def _distinct(tables: Iterable[_Table]) -> list[_Table]:
    """The first of those that are alike: some models have a module in every layer."""
    found: list[_Table] = []
    for table, cos, sin in tables:
        if not any(
            table.is_fixed == other.is_fixed and torch.equal(cos, other_cos) and torch.equal(sin, other_sin)
            for other, other_cos, other_sin in found
        ):
            found.append((table, cos, sin))
    return found


def _is_fixed(call: Call, extra: tuple[str, ...], most: int) -> bool:
    """Whether positions far beyond ``most``, which a model is made for, leave the angles of others as they are."""
    near = torch.arange(1, 4, device=call.x.device)
    alone: Tensor = call.module(call.x, near[None], *extra)[0]
    beside: Tensor = call.module(call.x, torch.cat([near, near + 64 * most])[None], *extra)[0]
    call.module(call.x, near[None], *extra)  # some keep what they found
    return _close(beside[:, : len(near)], alone)


def _read_norm(call: Call) -> NormPlan:
    """The norm that a module computes; it is recomputed, not known by its class."""
    module = call.module
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    size = call.x.shape[-1]
    own = torch.ones(size) if weight is None else weight.detach().float()
    eps = float(next((e for n in ("variance_epsilon", "eps") if (e := getattr(module, n, None)) is not None), 0.0))
    x = call.x
    if own.dim() == 2 and x.shape[-2] != len(own):
        x = x.transpose(1, 2)
    want = call.y.reshape(x.shape) if x is call.x else call.y.transpose(1, 2)
    if own.shape[-1] != size:
        raise NoPlanError(f"{call.name} has a weight of another size than its input")
    place = _place(call)
    for offset in (0.0, 1.0):
        if bias is None and _close(rms_norm_torch(x, own, eps, offset=offset), want):
            return NormPlan(place, "rms", own + offset, None, eps)
    other = None if bias is None else bias.detach().float()
    found = F.layer_norm(x, (size,), None, None, eps) * own + (0.0 if other is None else other)
    if _close(found, want):
        return NormPlan(place, "layer", own, other, eps)
    raise NoPlanError(f"{call.name} is no norm that is known")


def _factor(x: Tensor, a: Tensor, y: Tensor, where: str) -> float:
    """The number f for which ``y = x + f a``."""
    if y.numel() != a.numel():
        raise NoPlanError(f"{where} changes shapes")
    x, y = x.view_as(a), y.reshape(a.shape)
    if torch.equal(x + a, y):
        return 1.0
    a64 = a.double()
    factor = float(f"{float(((y.double() - x.double()) * a64).sum() / (a64 * a64).sum()):.6g}")  # as people write it
    if not _close(x + factor * a, y):
        raise NoPlanError(f"{where} is followed by more than a factor")
    return factor


def _norm_to(calls: Sequence[Call], y: Tensor) -> Call | None:
    """The norm that gave ``y``."""
    return _first([c for c in calls if _is_norm(c)], lambda call: call.y, y)


def _norm_of(calls: Sequence[Call], x: Tensor) -> Call | None:
    """The norm that was given ``x``."""
    return _first([c for c in calls if _is_norm(c)], lambda call: call.x, x)


def _first(calls: Sequence[Call], side: Callable[[Call], Tensor], tensor: Tensor) -> Call | None:
    """The call that had this very tensor, else an equal one: two norms of equal weights give equal outputs."""
    for test in (_is_one, _same):
        found = next((call for call in calls if test(side(call), tensor)), None)
        if found is not None:
            return found
    return None


def _of(calls: Sequence[Call], module: nn.Module) -> Call:
    found = [call for call in calls if call.module is module]
    if len(found) != 1:
        raise NoPlanError(f"{type(module).__name__} is called {len(found)} times")
    return found[0]


def _is_one(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and (_is_one(a, b) or torch.equal(a.reshape(b.shape), b))


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the roundings of a few operations in fp32."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def _is_linear(call: Call) -> bool:
    return isinstance(call.module, nn.Linear)


def _is_norm(call: Call) -> bool:
    return "Norm" in type(call.module).__name__


def _place(call: Call) -> Place:
    return Place(call.name, call.module)


def _expect(fact: bool, otherwise: str) -> None:
    if not fact:
        raise NoPlanError(otherwise)


def places(plan: Plan) -> Iterator[Place]:
    """Every module that the plan runs."""
    yield from (plan.embedding, plan.head)
    for layer in plan.layers:
        yield from (*layer.attention.inputs, layer.attention.output)
        yield from (*layer.mlp.inputs, layer.mlp.output) if isinstance(layer.mlp, MlpPlan) else (layer.mlp,)
    for norm in norms(plan):
        yield norm.place


def norms(plan: Plan) -> Iterator[NormPlan]:
    """Every norm of the plan."""
    found = [plan.norm]
    for layer in plan.layers:
        found += [layer.pre_attention, layer.post_attention, layer.pre_mlp, layer.post_mlp]
        found += [layer.attention.q_norm, layer.attention.k_norm]
    return (norm for norm in found if norm is not None)


def _check_coverage(model: PreTrainedModel, plan: Plan) -> None:
    """No module where adapters may act is left out."""
    known = {place.name for place in places(plan)}
    inside = tuple(f"{layer.mlp.name}." for layer in plan.layers if isinstance(layer.mlp, Place))
    for name in (*adaptable_modules(model), *expert_modules(model), *router_modules(model)):
        if name not in known and not (inside and name.startswith(inside)):
            raise NoPlanError(f"{name} has no place in the common shape")
