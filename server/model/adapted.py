"""Lets adapters act on the modules of an unmodified model.

The forward of every adaptable module is bound to one that runs the base module once for the whole batch, with the ops
of the current step's adapters before and after it on their rows. The module itself, its class and its weights stay as
the quantizer left them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from server.model.step import current

Forward = Callable[[Tensor], Tensor]


class BaseSite:
    """The base's own module at a place where adapters act; see ``adapters.ops.Site``. To be made before binding."""

    def __init__(self, module: nn.Module) -> None:
        self._shell = copy.copy(module)
        self._shell._parameters = dict(module._parameters)
        if isinstance(module, nn.Embedding):
            # matters to gradients only, and may lie beyond a table of few rows
            self._shell.__dict__["padding_idx"] = None

    def call(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """What the module computes for ``x`` with some of its parameters replaced."""
        y: Tensor = functional_call(self._shell, dict(parameters), (x,))
        return y


def adapt_module(module: nn.Module, name: str, *, is_head: bool = False) -> None:
    """Let adapters' ops at ``name`` act on ``module``. The output head sees only the rows whose logits are wanted."""
    base: Forward = module.forward
    site = BaseSite(module)

    def forward(x: Tensor) -> Tensor:
        step = current()
        groups = step.groups.get(name)
        if groups is None:
            return base(x)
        given = x
        if groups.before:
            given = x.clone()
            rows = given.view(-1, x.shape[-1])
            for group in groups.before:
                group.apply(rows, rows, step.plan(group.members, is_head), site)
        y = base(given)
        own = y.shape[-1]
        if is_head and step.head_width > y.shape[-1]:
            y = pad(y, (0, step.head_width - y.shape[-1]))  # for tokens that adapters brought
        rows_in, rows_out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for group in groups.after:
            known = rows_out[:, : group.op.columns(own, rows_out.shape[-1])] if is_head else rows_out
            group.apply(rows_in, known, step.plan(group.members, is_head), site)
        return y

    module.forward = forward


def adapt_embedding(module: nn.Module, name: str) -> None:
    """Let adapters act on the input embedding: ops at ``name``, whose input rows are the token ids.

    Prompt adapters put their own rows where the token is virtual (a negative id).
    """
    base: Forward = module.forward
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
            rows.index_copy_(0, step.embed_rows, step.embeds)
        return y

    module.forward = forward
