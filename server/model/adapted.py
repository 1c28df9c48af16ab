"""Lets adapters act on the modules of an unmodified model.

The forward of every adaptable module is bound to one that runs the base module once for the whole batch and then
adds the ops of the current step's adapters to their rows. The module itself, its class and its weights stay as the
quantizer left them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from server.model.step import current

Forward = Callable[[Tensor], Tensor]


def adapt_output(module: nn.Module, name: str) -> None:
    """Let adapters' ops at ``name`` add to the output of ``module``."""
    base: Forward = module.forward

    def forward(x: Tensor) -> Tensor:
        y = base(x)
        step = current()
        groups = step.groups.get(name)
        if groups is not None:
            rows_in, rows_out = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
            for group in groups:
                group.apply(rows_in, rows_out, step.plan(group.members))
        return y

    module.forward = forward


def adapt_embedding(module: nn.Module) -> None:
    """Let prompt adapters put their own rows where the token is virtual (a negative id)."""
    base: Forward = module.forward

    def forward(input_ids: Tensor) -> Tensor:
        step = current()
        if step.embed_rows is None or step.embeds is None:
            return base(input_ids)
        y = base(input_ids.clamp(min=0))
        y.view(-1, y.shape[-1]).index_copy_(0, step.embed_rows, step.embeds)
        return y

    module.forward = forward
