"""Routed experts, with adapters acting on them.

The weights of all experts of a layer are two parameters [num_experts, ...]. Every expert's product is made once for
all rows of the batch that go to it; then each adapter's update is added to its own rows. An adapter of the router
makes its rows choose other experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.ops.expert_low_rank import ExpertLowRank, Routed, expert_product
from adapters.ops.replace import ReplaceParameters
from server.model.adapted import BaseSite
from server.model.step import Step, current


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold a layer's experts, by name.

    They are those whose class takes part in transformers' ExpertsInterface, which tells how the weights lie.
    """
    return {name: module for name, module in model.named_modules() if hasattr(module, "has_post_expert_norm")}


def router_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that choose experts, by name. They are linear maps inside, and give choices beside logits."""
    return {name: module for name, module in model.named_modules() if is_router(module)}


def is_router(module: nn.Module) -> bool:
    """Whether a module chooses experts by a ``weight`` [num_experts, in_features], and by nothing but its input."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or "router" not in type(module).__name__.lower():
        return False
    return len(inspect.signature(type(module).forward).parameters) == 2  # itself and its input


def expert_shapes(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """(num_experts, in_features, out_features) of every parameter of experts, by name, in the modules' own order."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for name, module in expert_modules(model).items():
        for parameter, value in module.named_parameters(recurse=False):
            if value.dim() == 3:
                count, first, second = value.shape
                shapes[f"{name}.{parameter}"] = (
                    (count, first, second) if _is_transposed(module) else (count, second, first)
                )
    return shapes


def router_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(num_experts, in_features) of every router, by name."""
    weights = {name: module.get_parameter("weight") for name, module in router_modules(model).items()}
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}


def adapt_experts(module: Any, name: str) -> None:
    """Let adapters act on the parameters of the experts ``module``, at ``name.parameter``."""
    first = "gate_up_proj" if module.has_gate else "up_proj"

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
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
    if not _is_transposed(module):
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


def _is_transposed(module: nn.Module) -> bool:
    """Whether weights are stored [num_experts, in_features, out_features]."""
    return bool(getattr(module, "is_transposed", False))
