"""Asks a model whether packed examples are as good as alone: ``check_packing``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError

_LENGTH = 12
_SAME = 1e-3  # shapes and sums are the same: nothing but a leak makes a difference
_ALONE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # other shapes round in another order


def check_packing(model: Any, vocab_size: int) -> None:
    """Raise ConfigError unless ``model`` answers to an example in a packed row as it does to the example alone.

    The second of two packed examples must not change with the first, which finds attention across examples and states
    that are carried on, and must be as it is alone, which finds positions that do not restart. Tolerances are relative
    to the largest logit.
    """
    generator = torch.Generator().manual_seed(0)
    first, other, second = (torch.randint(vocab_size, (1, _LENGTH), generator=generator) for _ in range(3))
    try:
        packed = _logits(model, torch.cat([first, second], 1))
        after_other = _logits(model, torch.cat([other, second], 1))
        alone = _logits(model, second)
    except TypeError as error:
        raise ConfigError(f"training.packing: this base takes no position_ids ({error}); set it to false") from error
    scale = alone.abs().max()
    leak = ((packed - after_other).abs().max() / scale).item()
    shift = ((packed - alone).abs().max() / scale).item()
    if leak > _SAME or shift > _ALONE.get(_dtype_of(model), _ALONE[torch.bfloat16]):
        raise ConfigError(
            "training.packing: with this base and method examples in one row disturb each other "
            f"(logits change by {max(leak, shift):.1%}); set it to false"
        )


def _logits(model: Any, input_ids: Tensor) -> Tensor:
    """Logits [_LENGTH, vocab_size] of the last example in ``input_ids`` [1, n * _LENGTH]."""
    positions = torch.arange(_LENGTH).repeat(input_ids.shape[1] // _LENGTH)[None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            where = model.device
            out = model(input_ids=input_ids.to(where), position_ids=positions.to(where), use_cache=False)
    finally:
        model.train(was_training)
    logits: Tensor = out.logits[0, -_LENGTH:].float()
    return logits


def _dtype_of(model: nn.Module) -> torch.dtype:
    """The least precise floating-point dtype among the parameters."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point}
    return min(dtypes, key=lambda dtype: -torch.finfo(dtype).eps, default=torch.float32)
