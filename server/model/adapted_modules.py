"""Lets adapters act on the modules of an unmodified model: linear maps, norms, embeddings, routed experts and routers.

The forward of every adaptable module is bound to one that runs the base module once for the whole batch, with the ops
of the current step's adapters before and after it on their rows. The module itself, its class and its weights stay as
the quantizer left them. The weights of all experts of a layer are two parameters [num_experts, ...]: every expert's
product is made once for all rows of the batch that go to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters.batch.low_rank import JoinedMaps
from adapters.checkpoints import checkpoint
from adapters.ops.replace import ReplaceParameters
from adapters.ops.routed_experts import ExpertLowRank, Routed, expert_product
from bases.model import experts_are_transposed
from server.model.sites import NOTHING, BaseSite, change_output, changed_input
from server.model.step import Step, current

ModuleForward = Callable[[Tensor], Tensor]


def adapt_module(module: nn.Module, name: str, *, is_head: bool = False) -> None:
    """Let adapters' ops at ``name`` act on ``module``. The output head sees only the rows whose logits are wanted."""
    base: ModuleForward = module.forward
    site, maps = BaseSite(module), JoinedMaps({name: 0})

    def forward(x: Tensor) -> Tensor:
        checkpoint()
        step = current()
        groups = step.groups.get(name, NOTHING)
        updates = step.head_low_rank if is_head else step.low_rank
        changes = step.head_row_ops if is_head else step.row_ops
        if updates is not None and not maps.change(updates):
            updates = None
        if changes is not None and not changes.act_at(maps):
            changes = None
        if groups is NOTHING and updates is None and changes is None:
            return base(x)
        rows = x.reshape(-1, x.shape[-1])
        given = changed_input(rows, groups, step, site, at_head=is_head)
        if changes is not None:
            given = changes.changed_input(given, maps)
        y = base(given.view(x.shape))
        own = y.shape[-1] if is_head else 0
        if step.head_width > own > 0:
            y = pad(y, (0, step.head_width - own))  # for tokens that adapters brought
        changed = y.view(-1, y.shape[-1])
        if updates is not None:
            maps.add(rows, changed, updates)
        if changes is not None:
            changes.change_output(rows, changed, maps)
        change_output(rows, changed, groups, step, site, at_head=is_head, own=own)
        return y

    module.forward = forward


def adapt_embedding(module: nn.Module, name: str) -> None:
    """Let adapters act on the input embedding: ops at ``name``, whose input rows are the token ids.

    Prompt adapters put their own rows where the token is virtual (a negative id), and requests where they bring them.
    """
    base: ModuleForward = module.forward
    site = BaseSite(module)
    vocab_size = module.get_parameter("weight").shape[0]

    def forward(input_ids: Tensor) -> Tensor:
        step = current()
        groups = step.groups.get(name)
        if groups is None and step.embed_rows is None:
            return base(input_ids)
        y = base(input_ids.clamp(0, vocab_size - 1))  # virtual tokens, and those an adapter adds, are none of the base
        rows = y.view(-1, y.shape[-1])
        for group in groups.after if groups is not None else ():
            group.apply(input_ids.view(-1, 1), rows, step.plan(group.members, False), site)
        if step.embed_rows is not None and step.embeds is not None:
            rows.index_copy_(0, step.embed_rows, step.embeds.to(rows.dtype))
        return y

    module.forward = forward


def adapt_experts(module: Any, name: str) -> None:
    """Let adapters act on the parameters of the experts ``module``, at ``name.parameter``."""
    first = "gate_up_proj" if module.has_gate else "up_proj"

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        checkpoint()
        routing = _Routing.of(top_k_index)
        x = hidden_states[routing.tokens]
        y = _project(module, name, first, x, routing)
        y = module._apply_gate(y) if module.has_gate else module.act_fn(y)
        y = _project(module, name, "down_proj", y, routing)
        if module.has_post_expert_norm:
            y = module.post_expert_norm(y)
        y = y[routing.places].view(*top_k_index.shape, -1) * top_k_weights[..., None]
        return y.sum(1).to(hidden_states.dtype)

    module.forward = forward


def adapt_router(module: nn.Module, name: str) -> None:
    """Let adapters replace the weight of the router ``module`` for their rows."""
    base: Callable[[Tensor], Any] = module.forward
    site = BaseSite(module)

    def forward(hidden_states: Tensor) -> Any:
        out = base(hidden_states)
        step = current()
        groups = step.groups.get(name)
        if groups is None:
            return out
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        for group in groups.after:
            assert isinstance(group.op, ReplaceParameters)
            parameters = {key: value[0] for key, value in group.op.parameters.items()}
            for start, stop in _rows_of(group.members[0], step):
                changed: Any = site.call(parameters, rows[start:stop])
                for whole, part in zip(_tensors(out), _tensors(changed), strict=True):
                    whole.view(len(rows), -1)[start:stop] = part.view(stop - start, -1)
        return out

    module.forward = forward


@dataclass(frozen=True, eq=False)
class _Routing:
    """One layer's choice of experts, as rows (a token with one of its experts) sorted by expert.

    Shape: with T tokens of k experts each, all [T * k]: ``experts`` and ``tokens`` of the sorted rows, and ``places``
    where the sorted rows stand of (token 0, choice 0), (token 0, choice 1) ..
    """

    experts: Tensor
    tokens: Tensor
    places: Tensor
    choices: int

    @staticmethod
    def of(top_k_index: Tensor) -> _Routing:
        """The routing of ``top_k_index`` [T, k]."""
        experts, order = top_k_index.flatten().sort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        choices = top_k_index.shape[1]
        return _Routing(experts, order // choices, places, choices)

    def of_tokens(self, start: int, stop: int) -> Tensor:
        """Where the rows of tokens ``start .. stop`` stand, sorted by expert."""
        return self.places[start * self.choices : stop * self.choices].sort().values


def _project(module: Any, name: str, parameter: str, x: Tensor, routing: _Routing) -> Tensor:
    """One projection of the sorted rows, with the updates of the adapters in the batch."""
    weight: Tensor = getattr(module, parameter)
    if not experts_are_transposed(module):
        weight = weight.transpose(1, 2)
    y = expert_product(x, weight, routing.experts)
    if module.has_bias:
        y += getattr(module, f"{parameter}_bias")[routing.experts]
    step = current()
    groups = step.groups.get(f"{name}.{parameter}")
    for group in groups.after if groups is not None else ():
        assert isinstance(group.op, ExpertLowRank)
        for start, stop in _rows_of(group.members[0], step):
            places = routing.of_tokens(start, stop)
            changed = group.op.batched(x[places][None], y[places][None], Routed(routing.experts[places]))
            y.index_copy_(0, places, changed[0])
    return y


def _rows_of(member: object, step: Step) -> Iterator[tuple[int, int]]:
    """The runs of the batch's rows that are an adapter's."""
    return ((s.start, s.stop) for s in step.segments if s.member == member)


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)
