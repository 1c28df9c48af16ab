"""What the ops of a step's adapters do at one module of the base, whoever runs the module."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from adapters.batch.grouped import Groups
from server.model.step import Step

NOTHING = Groups()


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


def changed_input(x: Tensor, groups: Groups, step: Step, site: BaseSite, *, at_head: bool = False) -> Tensor:
    """What the module is to be given instead of its input ``x`` [T, in], which stays as it is.

    ``at_head`` says that the rows are those whose logits are wanted.
    """
    if not groups.before:
        return x
    given = x.clone()
    for group in groups.before:
        group.apply(given, given, step.plan(group.members, at_head), site)
    return given


def change_output(
    x: Tensor, y: Tensor, groups: Groups, step: Step, site: BaseSite, *, at_head: bool = False, own: int = 0
) -> None:
    """Change the module's output ``y`` [T, out] in place; its input was ``x`` [T, in].

    ``own`` is given by the output head, where that many columns are the base's, and others of adapters' tokens.
    """
    for group in groups.after:
        known = y[:, : group.op.columns(own, y.shape[-1])] if own else y
        group.apply(x, known, step.plan(group.members, at_head), site)
