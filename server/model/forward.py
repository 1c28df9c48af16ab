"""What differs between decoder-only and encoder-decoder bases: what is stored, which modules adapt, how a step runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from adapters.base_spec import BaseSpec
from adapters.batch.rows import RowSegment
from bases.model import LoadedBase, adaptable_modules, expert_modules, router_modules
from server.adapter_key import AdapterKey
from server.model.adapted_modules import adapt_embedding, adapt_experts, adapt_module, adapt_router
from server.model.adapter_pool import AdapterPool
from server.model.architecture_check import check_untested, probe_layers
from server.model.families import TESTED
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import assemble
from server.model.step import computing


def mask_unknown(logits: Tensor, segments: Sequence[RowSegment], pool: AdapterPool, num_logits: int) -> Tensor:
    """``logits`` with minus infinity for tokens that a row's adapter, or the base, does not write.

    Done behind the model, as some models change logits behind their head. ``num_logits`` are the base's; rows outside
    of ``segments`` are the base's too. Shape: ``logits`` [n, width]; the result is wider where an adapter reads tokens
    that it does not write, so that every token of its prompts has a column.
    """
    adapters = [pool[cast(AdapterKey, segment.member)] for segment in segments]
    width = max([logits.shape[-1], *(adapter.vocab_size or 0 for adapter in adapters)])
    if width == num_logits and not any(adapter.num_logits for adapter in adapters):
        return logits
    known = torch.full((len(logits), 1), num_logits)
    for segment, adapter in zip(segments, adapters, strict=True):
        known[segment.start : segment.stop] = adapter.num_logits or num_logits
    unknown = torch.arange(width, device=logits.device) >= known.to(logits.device)
    return pad(logits, (0, width - logits.shape[-1])).masked_fill(unknown, -torch.inf)


class Forward(Protocol):
    """A base's architecture, as the runner sees it. ``start_ids`` begin the decoder's sequence after the prompt."""

    start_ids: list[int]

    def layers(self) -> list[LayerShape]:
        """What each layer stores in the KV cache for one position."""

    def spec(self, spec: BaseSpec) -> BaseSpec:
        """What packages are checked against, from what is known of any base."""

    def adapt(self, spec: BaseSpec) -> None:
        """Let adapters act on the modules."""

    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> Tensor:
        """Compute one step; logits in the order of the sequences' ``logits_at``.

        Shape: [n, vocab_size]; wider where an adapter of the batch has more tokens. Those that a row's adapter does
        not have are minus infinity.
        """

    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        """A prefill and a decode that use the first two blocks."""


class DecoderForward(Forward):
    """A decoder-only base: an unmodified transformers model, run once over all rows of a step."""

    def __init__(self, base: LoadedBase) -> None:
        self.start_ids: list[int] = []
        self._base = base
        self._num_logits = 0

    @override
    def layers(self) -> list[LayerShape]:
        layers = probe_layers(self._base)
        if self._base.model.config.model_type not in TESTED:
            check_untested(self._base, layers)
        return layers

    @override
    def spec(self, spec: BaseSpec) -> BaseSpec:
        return spec

    @override
    def adapt(self, spec: BaseSpec) -> None:
        self._num_logits = spec.linears[spec.head][0]
        for name, module in adaptable_modules(self._base.model).items():
            adapt_module(module, name, is_head=name == spec.head)
        for name, module in expert_modules(self._base.model).items():
            adapt_experts(module, name)
        for name, module in router_modules(self._base.model).items():
            adapt_router(module, name)
        adapt_embedding(self._base.model.get_input_embeddings(), spec.embedding)

    @override
    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> Tensor:
        batch = assemble(inputs, cache, pool, self._base.device)
        with computing(batch.step):
            output = self._base.model(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logits_rows,
            )
        return mask_unknown(output.logits[0], batch.step.head_segments, pool, self._num_logits)

    @override
    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        prompt = SequenceInput(None, [0] * min(8, block_size), 0, [0], [0])
        return [ModelInput([prompt]), ModelInput([SequenceInput(None, [0], 0, [0], [0])])]
