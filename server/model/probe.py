"""Finds out what each attention layer stores, by running one token through the model.

Configs name head counts and sizes differently, and some models store keys and values of different size.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from server.errors import EngineStartError
from server.model.kv_cache import KVCache, LayerShape
from server.model.loader import LoadedBase
from server.model.step import PrefillPart, Step, computing


class _Recorder:
    """Stands in for the cache: keeps what is written and gives it back."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        self.stored[layer] = (key, value)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.stored[layer]
        return key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def probe_layers(base: LoadedBase) -> list[LayerShape]:
    """What each layer stores. Raises EngineStartError when a layer does not attend through our function."""
    recorder = _Recorder()
    slots = torch.zeros(1, dtype=torch.long, device=base.device)
    part = PrefillPart(row=0, count=1, start=0, slots=slots[None])
    step = Step(cast(KVCache, recorder), slots, None, [part], [], [], {})
    with torch.inference_mode(), computing(step):
        base.model(input_ids=slots[None], position_ids=slots[None], use_cache=False)
    layers = int(base.model.config.num_hidden_layers)
    if sorted(recorder.stored) != list(range(layers)):
        raise EngineStartError(
            f"the architecture {base.model.config.model_type} cannot be served: {len(recorder.stored)} of its "
            f"{layers} layers attend through transformers' AttentionInterface"
        )
    shapes = (recorder.stored[i] for i in range(layers))
    return [LayerShape(key.shape[1], key.shape[2], value.shape[2]) for key, value in shapes]
