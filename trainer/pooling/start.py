"""A task that begins with an adapter there is already: of the same task with its head, or of any other without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapters.kinds.config import FEATURE_EXTRACTION, PREFIX
from adapters.kinds.head_names import head_parameter
from trainer.base_model import Base
from trainer.errors import ConfigError
from trainer.loop.start import StartingPoint, begin_with
from trainer.pooling.labels import LabelSet, some_labels
from trainer.pooling.model import HEAD, PooledModel

_ADAPTED = "adapted."  # of the names of a PooledModel's parameters


def begin_pooled(  # noqa: PLR0917 - what begin_with is given behind what is known before
    labels: LabelSet | None,
    say: Callable[[str], None],
    start: StartingPoint,
    model: PooledModel,
    base: Base,
    method: Mapping[str, Any],
) -> None:
    """Put ``start`` into ``model``, as ``begin_with``; ``say`` hears where it has no head for this task.

    Raises ConfigError, also where the head there is of other labels.
    """
    head, rest = _split(start, model)
    begin_with(replace(start, tensors=rest), model.adapted, base, method)
    if model.score is None:
        return
    if not head:
        say(f"start_from: {start.path} has no head; that of this task begins afresh")
        return
    if labels is not None and start.labels and start.labels != labels.names:
        raise ConfigError(
            f"start_from: the labels there are {some_labels(start.labels)}, and here {some_labels(labels.names)}; name "
            "those there with task.labels, in their order"
        )
    own = dict(model.score.named_parameters())
    if {name: value.shape for name, value in head.items()} != {name: value.shape for name, value in own.items()}:
        raise ConfigError(
            f"start_from: the head there has {len(head['weight'])} outputs, and this task has {len(own['weight'])}"
            if "weight" in head
            else "start_from: the head there is no single linear map"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(head[name])


def _split(start: StartingPoint, model: PooledModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of a head, by their names in it, and the tensors of the adapter as one that writes has them."""
    head: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    around = f"{PREFIX}{model.backbone}."
    of_backbone = start.is_package and start.settings.get("task_type") == FEATURE_EXTRACTION
    for name, tensor in start.tensors.items():
        if start.is_package:
            parameter = head_parameter(name)
        else:
            parameter = name.removeprefix(f"{HEAD}.") if name.startswith(f"{HEAD}.") else None
        if parameter:
            head[parameter] = tensor
        elif parameter is None:
            short = name.removeprefix(_ADAPTED)
            is_short = of_backbone and short.startswith(PREFIX) and not short.startswith(around)
            rest[around + short.removeprefix(PREFIX) if is_short else short] = tensor
    return head, rest
