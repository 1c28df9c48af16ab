"""Attention over packed rows, one example at a time, and a check that a model keeps the examples apart.

transformers' own way multiplies whole rows and masks out most of it, which costs more than packing saves. It still does
the work wherever this one would not be the same: rows that are not packed, sliding windows, dropout of weights.
``check_packing`` asks a model whether packed examples are as good as alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.errors import ConfigError

NAME = "hotswap_packed"
_BEYOND_CAUSAL = ("softcap", "s_aux", "position_bias", "cache")
_ALIKE = 1.3  # examples are computed together when none is more than so many times as long as another


@dataclass(frozen=True)
class _Blocks:
    """The examples in packed rows, as places in the flattened rows.

    Shape: ``groups`` pairs of places [n, longest] and whether they are real; ``order`` [rows * length] puts the results
    of all groups back into the order of the rows.
    """

    groups: list[tuple[Tensor, Tensor]]
    order: Tensor
    longest: int


class _Last:
    """The blocks of the batch that is being computed: every layer asks for the same. One thread trains."""

    position_ids: Tensor | None = None
    blocks: _Blocks | None = None


def use_packed_attention(model: Any) -> None:
    """Let ``model``, a base, compute packed rows example by example, where its attention can be replaced."""
    if model.config._attn_implementation != "sdpa":
        return  # the others skip what is masked themselves, or do what sdpa cannot
    try:
        model.set_attn_implementation(NAME)
    except ValueError:
        return  # its attention is its own


def packed_attention(  # noqa: PLR0917 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within every example of packed rows; sdpa's where they are not packed.

    Shape: ``query`` [B, Hq, T, D]; ``key``, ``value`` [B, Hkv, T, D]; returns [B, T, Hq, D].
    """
    blocks = _blocks_of(options.get("position_ids"), query.shape[0])
    if blocks is None or dropout or not getattr(module, "is_causal", True) or _is_special(options, blocks.longest):
        out: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)[0]
        return out, None
    groups = query.shape[1] // key.shape[1]
    flat = [
        states.transpose(1, 2).flatten(0, 1)
        for states in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    ]
    parts = []
    for places, real in blocks.groups:
        q, k, v = (states[places].transpose(1, 2) for states in flat)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        parts.append(attended.transpose(1, 2)[real])
    joined = torch.cat(parts)[blocks.order]
    return joined.view(query.shape[0], query.shape[2], *joined.shape[1:]), None


def _is_special(options: dict[str, Any], longest: int) -> bool:
    """Whether ``options`` ask for more than causal attention over examples of up to ``longest`` tokens."""
    window = options.get("sliding_window")
    return bool(window and longest > window) or any(options.get(name) is not None for name in _BEYOND_CAUSAL)


def _blocks_of(position_ids: Tensor | None, rows: int) -> _Blocks | None:
    """The blocks of rows with ``position_ids`` [rows, T]; None where there is one example a row."""
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[0] != rows:
        return None
    if _Last.position_ids is not position_ids:
        _Last.blocks, _Last.position_ids = _find_blocks(position_ids), position_ids
    return _Last.blocks


def _find_blocks(position_ids: Tensor) -> _Blocks | None:
    first = (position_ids == 0).flatten().nonzero().flatten()
    if len(first) <= position_ids.shape[0] or first[0] != 0:
        return None
    ends = torch.cat([first[1:], first.new_tensor([position_ids.numel()])])
    lengths, by_length = (ends - first).sort(stable=True)
    groups, at = [], 0
    while at < len(lengths):
        end = int(torch.searchsorted(lengths, int(lengths[at] * _ALIKE), right=True))
        within = torch.arange(int(lengths[end - 1]), device=first.device)
        real = within < lengths[at:end, None]
        places = first[by_length[at:end], None] + torch.where(real, within, 0)
        groups.append((places, real))
        at = end
    order = torch.cat([places[real] for places, real in groups]).argsort()
    return _Blocks(groups, order, int(lengths[-1]))


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
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
