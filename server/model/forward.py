"""What differs between decoder-only and encoder-decoder bases: what is stored, which modules adapt, how a step runs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from adapters.base import BaseSpec
from server.model.adapted import adapt_embedding, adapt_module
from server.model.assemble import assemble
from server.model.experts import adapt_experts, adapt_router, expert_modules, router_modules
from server.model.families import TESTED
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.loader import LoadedBase, adaptable_modules
from server.model.pool import AdapterPool
from server.model.probe import check_untested, probe_layers
from server.model.step import computing
from server.model.vocabulary import mask_unknown


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


class DecoderForward:
    """A decoder-only base: an unmodified transformers model, run once over all rows of a step."""

    def __init__(self, base: LoadedBase) -> None:
        self.start_ids: list[int] = []
        self._base = base
        self._num_logits = 0

    def layers(self) -> list[LayerShape]:
        """See Forward.layers."""
        layers = probe_layers(self._base)
        if self._base.model.config.model_type not in TESTED:
            check_untested(self._base, layers)
        return layers

    def spec(self, spec: BaseSpec) -> BaseSpec:
        """See Forward.spec."""
        return spec

    def adapt(self, spec: BaseSpec) -> None:
        """See Forward.adapt."""
        self._num_logits = spec.linears[spec.head][0]
        for name, module in adaptable_modules(self._base.model).items():
            adapt_module(module, name, is_head=name == spec.head)
        for name, module in expert_modules(self._base.model).items():
            adapt_experts(module, name)
        for name, module in router_modules(self._base.model).items():
            adapt_router(module, name)
        adapt_embedding(self._base.model.get_input_embeddings(), spec.embedding)

    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> Tensor:
        """See Forward.execute."""
        batch = assemble(inputs, cache, pool, self._base.device)
        with computing(batch.step):
            output = self._base.model(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logits_rows,
            )
        return mask_unknown(output.logits[0], batch.step.head_segments, pool, self._num_logits)

    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        """See Forward.warm_up_inputs."""
        prompt = SequenceInput(None, [0] * min(8, block_size), 0, [0], [0])
        return [ModelInput([prompt]), ModelInput([SequenceInput(None, [0], 0, [0], [0])])]
