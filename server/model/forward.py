"""What differs between decoder-only and encoder-decoder bases: what is stored, which modules adapt, how a step runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from adapters.base_spec import BaseSpec
from adapters.batch.rows import RowSegment
from bases.compute import dtype_name
from bases.model import LoadedBase, adaptable_modules, expert_modules, router_modules
from server.adapter_key import AdapterKey
from server.model.adapted_modules import adapt_embedding, adapt_experts, adapt_module, adapt_router
from server.model.adapter_pool import AdapterPool
from server.model.architecture_check import check_untested, probe_layers
from server.model.families import TESTED
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import Assembled, assemble
from server.model.lean.check import disagreement, tolerance
from server.model.lean.decoder import LeanDecoder
from server.model.lean.reading import NoPlanError, read_plan
from server.model.outputs import ModelOutput
from server.model.step import computing, current

logger = logging.getLogger(__name__)


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


def hidden_of(inputs: ModelInput, batch: Assembled, pool: AdapterPool) -> list[Tensor]:
    """The hidden states that each sequence with ``hidden_at`` wants, in float32, or what its adapter's head makes."""
    if batch.step.hidden is None:
        return []
    asking = [sequence for sequence in inputs.sequences if len(sequence.hidden_at)]
    hidden = batch.step.hidden[batch.hidden_rows].float()
    rows: Sequence[Tensor] = torch.split(hidden, [len(sequence.hidden_at) for sequence in asking])
    return [_through_head(sequence, part, pool) for sequence, part in zip(asking, rows, strict=True)]


def _through_head(sequence: SequenceInput, rows: Tensor, pool: AdapterPool) -> Tensor:
    if not sequence.through_head:
        return rows
    head = None if sequence.adapter is None else pool[sequence.adapter].head
    assert head is not None, f"{sequence.adapter} has no head of its own"
    return head.outputs(rows)


def _leave_hidden(_module: Any, _args: Any, output: Any) -> None:
    """Behind a transformers model without its head: what the step at hand wants of its hidden states."""
    step = current()
    if step.wants_hidden:
        step.hidden = output.last_hidden_state[0]


class Forward(Protocol):
    """A base's architecture, as the runner sees it.

    ``start_ids`` begin the decoder's sequence after the prompt. ``has_exact_rows``: with native kernels a row's logits
    are the same to the last bit, whatever is computed with it and in whatever pieces. ``hidden_size``: of the hidden
    states that ``execute`` can give; 0 where it gives none. ``embedding_size``: of rows that may come in the place of
    embeddings; 0 where none may.
    """

    start_ids: list[int]
    has_exact_rows: bool
    hidden_size: int
    embedding_size: int

    def layers(self) -> list[LayerShape]:
        """What each layer stores in the KV cache for one position."""

    def spec(self, spec: BaseSpec) -> BaseSpec:
        """What packages are checked against, from what is known of any base."""

    def adapt(self, spec: BaseSpec) -> None:
        """Let adapters act on the modules."""

    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> ModelOutput:
        """Compute one step; logits in the order of the sequences' ``logits_at``, and hidden states.

        Shape: logits [n, vocab_size]; wider where an adapter of the batch has more tokens. Those that a row's adapter
        does not have are minus infinity.
        """

    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        """A prefill and a decode that use the first two blocks."""


class DecoderForward(Forward):
    """A decoder-only base, run once over all rows of a step.

    By the plan that is read off its transformers model, where that agrees with the model (``server.model.lean``), else
    by the model itself, unmodified; ``choice`` "generic" wants the latter.
    """

    def __init__(self, base: LoadedBase, choice: str = "auto") -> None:
        self.start_ids: list[int] = []
        self.has_exact_rows = False
        self.hidden_size = self.embedding_size = 0
        self._base, self._choice = base, choice
        self._num_logits = 0
        self._layers: list[LayerShape] = []
        self._lean: LeanDecoder | None = None

    @property
    def is_lean(self) -> bool:
        """Whether a plan runs in place of the model."""
        return self._lean is not None

    @override
    def layers(self) -> list[LayerShape]:
        self._layers = probe_layers(self._base)
        if self._base.model.config.model_type not in TESTED:
            check_untested(self._base, self._layers)
        return self._layers

    @override
    def spec(self, spec: BaseSpec) -> BaseSpec:
        return spec

    @override
    def adapt(self, spec: BaseSpec) -> None:
        self._num_logits = spec.linears[spec.head][0]
        found = self._planned()
        for name, module in adaptable_modules(self._base.model).items():
            adapt_module(module, name, is_head=name == spec.head)
        for name, module in expert_modules(self._base.model).items():
            adapt_experts(module, name)
        for name, module in router_modules(self._base.model).items():
            adapt_router(module, name)
        embedding = self._base.model.get_input_embeddings()
        adapt_embedding(embedding, spec.embedding)
        self.embedding_size = embedding.weight.shape[1]
        if self._base.model.base_model is not self._base.model:
            self._base.model.base_model.register_forward_hook(_leave_hidden)
            self.hidden_size = spec.linears[spec.head][1]
        self._choose(found)

    def _planned(self) -> LeanDecoder | str:
        """A plan, ready to run, or why there is none. To be made while the modules are as they were loaded."""
        if self._choice == "generic":
            return "as --forward says"
        if self._base.device.type != "cpu" or self._base.dtype != torch.float32:
            return f"it computes in {dtype_name(self._base.dtype)} on {self._base.device}, not in float32 on the CPU"
        try:
            return LeanDecoder(read_plan(self._base.model))
        except NoPlanError as error:
            return str(error)

    def _choose(self, found: LeanDecoder | str) -> None:
        """Take a plan that agrees with the model, and say what runs."""
        if isinstance(found, LeanDecoder):
            off = disagreement(found.logits, self._by_model, self._layers, self._num_logits)
            if off <= tolerance(self._base.quantization):
                self._lean, self.has_exact_rows = found, found.has_exact_rows
                logger.info("lean forward, by the plan of the model; off by %.1g of the logits' spread", off)
                return
            found = f"its plan gives other logits (off by {off:.2g} of their spread)"
        logger.info("generic forward, by transformers: %s", found)

    @override
    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> ModelOutput:
        batch = assemble(inputs, cache, pool, self._base.device)
        with computing(batch.step):
            logits = self._by_model(batch) if self._lean is None else self._lean.logits(batch)
        logits = mask_unknown(logits, batch.step.head_segments, pool, self._num_logits)
        return ModelOutput(logits, hidden_of(inputs, batch, pool))

    def _by_model(self, batch: Assembled) -> Tensor:
        output = self._base.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.logits_rows,
        )
        logits: Tensor = output.logits[0]
        return logits

    @override
    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        prompt = SequenceInput(None, [0] * min(8, block_size), 0, [0], [0])
        return [ModelInput([prompt]), ModelInput([SequenceInput(None, [0], 0, [0], [0])])]
