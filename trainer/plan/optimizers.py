"""Bytes of an optimizer's state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

_SMALL = 4096  # bitsandbytes keeps states of fewer values in float32
_BLOCK = 256  # 8-bit values that share one float32 scale


def state_bytes(parameters: Sequence[nn.Parameter], optimizer: str) -> int:
    """Bytes that ``optimizer`` keeps for ``parameters`` from its first step on."""
    return sum(map(_STATES[optimizer], parameters))


def _full(copies: int) -> Callable[[nn.Parameter], int]:
    """States of the parameter's own size and dtype."""
    return lambda parameter: copies * parameter.numel() * parameter.element_size()


def _eight_bit(copies: int) -> Callable[[nn.Parameter], int]:
    def held(parameter: nn.Parameter) -> int:
        count = parameter.numel()
        return copies * (4 * count if count < _SMALL else count + 4 * math.ceil(count / _BLOCK))

    return held


def _factored(parameter: nn.Parameter) -> int:
    """Adafactor: a float32 per row and per column of a matrix."""
    *outer, rows, columns = [1, *parameter.shape] if parameter.dim() > 1 else [1, parameter.numel(), 0]
    return 4 * math.prod(outer) * (rows + columns)


_STATES: dict[str, Callable[[nn.Parameter], int]] = {
    "adamw": _full(2),
    "adamw_8bit": _eight_bit(2),
    "paged_adamw_8bit": _eight_bit(2),
    "lion": _full(1),
    "lion_8bit": _eight_bit(1),
    "adafactor": _factored,
    "sgd": lambda _parameter: 0,
}
