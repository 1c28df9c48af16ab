"""Runs T5's stacks: the encoder over the prompts that are new in a step, then the decoder over its new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from adapters.base_spec import BaseSpec
from adapters.batch.grouped import Groups
from bases.model import LoadedBase, adaptable_modules
from server.errors import EngineStartError
from server.model.adapted_modules import adapt_embedding, adapt_module
from server.model.adapter_pool import AdapterPool
from server.model.forward import Forward
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import Placed, head_segments, padded, place, row_segments, slots_of, virtual_rows
from server.model.outputs import ModelOutput
from server.model.seq2seq.t5_attention import DecoderStep, bind_attention, layer_shapes, write_source
from server.model.step import DecodePart, PrefillPart, Step, computing


@dataclass(frozen=True, eq=False)
class Pass:
    """A step of one stack and its input. Shape: ``input_ids`` [T]; ``logits_rows`` [n], none for the encoder."""

    step: Step
    input_ids: Tensor
    logits_rows: Tensor


def encoder_pass(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Pass | None:
    """The encoder's part of a step; None when no prompt is new."""
    sequences = [_source(s) for s in inputs.sequences if s.start < s.decoder_start]
    if not sequences:
        return None
    by_row = sorted(place(sequences), key=lambda p: p.row)
    slots = [slots_of(p, cache.block_size, device)[p.sequence.start :] for p in by_row]
    embed_rows, embeds = virtual_rows(by_row, pool, device)
    segments = row_segments(by_row)
    step = Step(
        cache=cache,
        slots=torch.cat(slots),
        decode=None,
        prefills=[PrefillPart(p.row, p.count, 0, s[None]) for p, s in zip(by_row, slots, strict=True)],
        segments=segments,
        head_segments=[],
        groups=_groups(sequences, pool),
        low_rank=pool.low_rank(segments),
        row_ops=pool.row_ops(segments),
        embed_rows=embed_rows,
        embeds=embeds,
    )
    return Pass(step, _token_ids(by_row, device), torch.empty(0, dtype=torch.long, device=device))


def decoder_pass(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Pass:
    """The decoder's part of a step."""
    sequences = [_target(s) for s in inputs.sequences]
    placed = place(sequences)
    by_row = sorted(placed, key=lambda p: p.row)
    rows = [_ReadSlots.of(p, cache.block_size, pool, device) for p in by_row]
    one, many = [r for r in rows if r.placed.count == 1], [r for r in rows if r.placed.count > 1]
    segments, at_head = row_segments(by_row), head_segments(placed)
    step = DecoderStep(
        cache=cache,
        slots=torch.cat([r.own[-r.placed.count :] for r in rows]),
        decode=_decode_part(one, [r.own for r in one], device),
        prefills=[PrefillPart(r.placed.row, r.placed.count, len(r.own) - r.placed.count, r.own[None]) for r in many],
        segments=segments,
        head_segments=at_head,
        groups=_groups(sequences, pool),
        low_rank=pool.low_rank(segments),
        head_low_rank=pool.low_rank(at_head),
        row_ops=pool.row_ops(segments),
        head_row_ops=pool.row_ops(at_head),
        cross=_decode_part(one, [r.source for r in one], device),
        cross_prefills=[PrefillPart(r.placed.row, r.placed.count, 0, r.source[None]) for r in many],
    )
    wanted = [p.row + i for p in placed for i in p.sequence.logits_at]
    return Pass(step, _token_ids(by_row, device), torch.tensor(wanted, dtype=torch.long, device=device))


@dataclass(frozen=True, eq=False)
class _ReadSlots:
    """A sequence of the decoder, and the slots that self-attention (``own``) and cross-attention read."""

    placed: Placed
    own: Tensor
    source: Tensor

    @staticmethod
    def of(placed: Placed, block_size: int, pool: AdapterPool, device: torch.device) -> _ReadSlots:
        sequence = placed.sequence
        prefix = None if sequence.adapter is None else pool[sequence.adapter].prefix
        given = 0 if prefix is None else prefix.keys.shape[1]
        slots = slots_of(placed, block_size, device)
        own = torch.cat([slots[:given], slots[sequence.decoder_start :]])
        return _ReadSlots(placed, own, slots[given : sequence.decoder_start])


def _source(sequence: SequenceInput) -> SequenceInput:
    """What the encoder computes of a sequence. Bidirectional attention cannot be cut, so it is always all of it."""
    count = sequence.decoder_start - sequence.start
    assert len(sequence.token_ids) > count, "a prompt is encoded whole, with the decoder's first token"
    return SequenceInput(sequence.adapter, sequence.token_ids[:count], sequence.start, sequence.block_table, [])


def _target(sequence: SequenceInput) -> SequenceInput:
    """What the decoder computes of a sequence."""
    skipped = max(0, sequence.decoder_start - sequence.start)
    return SequenceInput(
        sequence.adapter,
        sequence.token_ids[skipped:],
        sequence.start + skipped,
        sequence.block_table,
        [i - skipped for i in sequence.logits_at],
        sequence.decoder_start,
    )


def _decode_part(reads: Sequence[_ReadSlots], slots: Sequence[Tensor], device: torch.device) -> DecodePart | None:
    if not reads:
        return None
    return DecodePart(
        rows=torch.tensor([r.placed.row for r in reads], dtype=torch.long, device=device),
        slots=padded(slots),
        lengths=torch.tensor([len(s) for s in slots], dtype=torch.long, device=device),
    )


def _groups(sequences: Sequence[SequenceInput], pool: AdapterPool) -> Mapping[str, Groups]:
    return pool.groups(frozenset(s.adapter for s in sequences if s.adapter is not None))


def _token_ids(by_row: Sequence[Placed], device: torch.device) -> Tensor:
    return torch.tensor([t for p in by_row for t in p.sequence.token_ids], dtype=torch.long, device=device)


class Seq2SeqForward(Forward):
    """An encoder-decoder base."""

    def __init__(self, base: LoadedBase) -> None:
        if base.dtype == torch.float16:
            raise EngineStartError(
                f"--dtype float16: {base.model.config.model_type} was trained in bfloat16 and overflows in float16 "
                "(transformers keeps parts of it in float32 then); use --dtype bfloat16 or float32"
            )
        self._model, self._device = base.model, base.device
        self.start_ids: list[int] = [base.decoder_start_id]
        self.hidden_size = self.embedding_size = 0
        self.has_exact_rows = False  # it attends by torch
        bind_attention(base.model)

    @override
    def layers(self) -> list[LayerShape]:
        return layer_shapes(self._model)

    @override
    def spec(self, spec: BaseSpec) -> BaseSpec:
        """The stacks have an embedding module each, of one weight: no adapter may act on it, so none is named."""
        parameters = {n: shape for n, shape in spec.parameters.items() if not n.startswith(f"{spec.embedding}.")}
        return replace(spec, parameters=parameters, embedding="", is_encoder_decoder=True)

    @override
    def adapt(self, spec: BaseSpec) -> None:
        for name, module in adaptable_modules(self._model).items():
            adapt_module(module, name, is_head=name == spec.head)
        adapt_embedding(self._model.encoder.embed_tokens, "encoder.embed_tokens")

    @override
    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> ModelOutput:
        encoder = encoder_pass(inputs, cache, pool, self._device)
        if encoder is not None:
            self._encode(encoder)
        return ModelOutput(self._decode(decoder_pass(inputs, cache, pool, self._device)), [])

    @override
    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        count = min(8, 2 * block_size - 1)
        tokens = [0] * count + self.start_ids
        prompt = SequenceInput(None, tokens, 0, [0, 1], [count], count)
        return [ModelInput([prompt]), ModelInput([SequenceInput(None, self.start_ids, count, [0, 1], [0], count)])]

    def _encode(self, encoder: Pass) -> None:
        with computing(encoder.step):
            encoded = self._model.encoder(input_ids=encoder.input_ids[None])
            write_source(self._model, encoded.last_hidden_state)

    def _decode(self, decoder: Pass) -> Tensor:
        """As T5's own forward does after its encoder; only rows whose logits are wanted reach the head."""
        with computing(decoder.step):
            nothing = torch.empty(1, 0, self._model.model_dim, device=self._device)  # it lies in the cache
            hidden = self._model.decoder(
                input_ids=decoder.input_ids[None], encoder_hidden_states=nothing, use_cache=False
            ).last_hidden_state[:, decoder.logits_rows]
            if getattr(self._model.config, "scale_decoder_outputs", False):  # mT5 has no such setting
                hidden = hidden * self._model.model_dim**-0.5
            logits: Tensor = self._model.lm_head(hidden)[0]
        return logits
