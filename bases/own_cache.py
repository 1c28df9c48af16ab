"""Keys and values of the past in the form in which code of a base's own takes and gives them.

That is a cache of transformers', which the code fills, or the tuples of transformers 4, whose axes every architecture
lays out in a way of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

_ROWS, _TOKENS = 5, 7  # of a trial: sizes that tell axes apart
OWN_ERRORS = (ValueError, TypeError, AttributeError, RuntimeError, KeyError, IndexError)  # that code may fail with


@dataclass(frozen=True)
class CacheForm:
    """What a decoder keeps: ``layers`` of ``heads`` keys and values of ``width``.

    ``axes`` bring [rows, heads, tokens, width] into the order of the code's tuples; None: it takes transformers' cache.
    """

    layers: int
    heads: int
    width: int
    axes: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, heads, width)."""
        return self.layers, self.heads, self.width

    def make(self, layers: Sequence[Tensor] | Tensor = ()) -> Any:
        """What holds ``layers``, each [2, rows, heads, tokens, width]; the beginning of a sequence without them."""
        if self.axes is not None:
            return tuple((key.permute(self.axes), value.permute(self.axes)) for key, value in layers) or None
        cache = DynamicCache()
        for layer, (key, value) in enumerate(layers):
            cache.update(key, value, layer)
        return cache


def cache_form(model: Any) -> CacheForm:
    """The form of a decoder's cache, by what it does. Raises ValueError for one that keeps none of these forms."""
    try:
        return _by_cache(model)
    except OWN_ERRORS:
        return _by_tuples(model)


@torch.no_grad()
def _by_cache(model: Any) -> CacheForm:
    cache = DynamicCache()
    model(input_ids=_trial(model), past_key_values=cache, use_cache=True)
    found = {tuple(tensor.shape) for layer in cache.layers for tensor in (layer.keys, layer.values)}
    if len(found) != 1:
        raise ValueError("its code does not keep keys and values, all of one size, in transformers' cache")
    rows, heads, tokens, width = found.pop()
    if (rows, tokens) != (_ROWS, _TOKENS):
        raise ValueError("its code keeps other keys and values than those of the tokens")
    return CacheForm(len(cache.layers), heads, width)


@torch.no_grad()
def _by_tuples(model: Any) -> CacheForm:
    try:
        kept = model(input_ids=_trial(model), use_cache=True).past_key_values
        layers = [] if kept is None or isinstance(kept, Cache) else [tuple(layer) for layer in kept]
        found = {tuple(tensor.shape) for layer in layers for tensor in layer}
    except OWN_ERRORS as error:
        raise ValueError("its code keeps no keys and values") from error
    if len(found) != 1 or any(len(layer) != 2 for layer in layers):
        raise ValueError("its code does not keep keys and values, all of one size, in a cache")
    sizes = found.pop()
    if len(sizes) != 4 or sizes.count(_ROWS) != 1 or sizes.count(_TOKENS) != 1:
        raise ValueError("its code keeps other keys and values than those of the tokens")
    names = {sizes.index(_ROWS): 0, sizes.index(_TOKENS): 2}
    heads, width = (axis for axis in range(4) if axis not in names)
    names |= {heads: 1, width: 3}
    return CacheForm(len(layers), sizes[heads], sizes[width], tuple(names[axis] for axis in range(4)))


def _trial(model: Any) -> Tensor:
    return torch.zeros(_ROWS, _TOKENS, dtype=torch.long, device=model.device)
