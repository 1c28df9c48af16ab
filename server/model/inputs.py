"""One step's work for the model, as the engine hands it over. No torch: plain ints, made into tensors by the runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.adapter_key import AdapterKey


@dataclass(frozen=True)
class Embeds:
    """Embeddings for ``count`` tokens, from index ``at`` on: little-endian float32 [count, embedding_size]."""

    at: int
    count: int
    rows: bytes


@dataclass(frozen=True)
class SequenceInput:
    """The tokens of one sequence to compute in this step.

    Positions ``start .. start + len(token_ids)`` are computed; KV for positions before ``start`` is already in
    ``block_table``. The first ``num_virtual_tokens`` positions of a sequence belong to its adapter: their entries in
    ``token_ids`` are ``VIRTUAL``; a prompt adapter's runner puts its embedding rows there (a prefix adapter's are
    never computed, their KV is given). ``logits_at`` are indices into ``token_ids`` whose logits are wanted, in
    order. ``block_table[i]`` holds positions ``i * block_size ..``. On an encoder-decoder, ``decoder_start`` is the
    position of the decoder's first token: what stands before is the encoder's input, except a prefix adapter's virtual
    tokens, which stand before the decoder's. On other bases it is 0. The adapter acts from position ``activate_from``
    on; what stands before is computed as by the base.

    ``embeds`` stand in the place of what some of the tokens would be embedded as.

    ``hidden_at`` are indices whose hidden states are wanted, as they leave the last norm; ``through_head``: what the
    adapter's own head makes of them.
    """

    adapter: AdapterKey | None
    token_ids: list[int]
    start: int
    block_table: list[int]
    logits_at: list[int]
    decoder_start: int = 0
    activate_from: int = 0
    hidden_at: Sequence[int] = ()
    through_head: bool = False
    embeds: Embeds | None = None


@dataclass(frozen=True)
class ModelInput:
    """All sequences of one step. ``copies`` (source block, target block) are made before anything is computed.

    Logits come back as [sum(len(s.logits_at)), vocab_size], in the order of ``sequences``.
    """

    sequences: list[SequenceInput]
    copies: list[tuple[int, int]] = field(default_factory=list)


VIRTUAL = -1
NEVER = 1 << 62  # an ``activate_from`` beyond every sequence
