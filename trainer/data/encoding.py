"""One row to what trains: cut to the limits, rendered, tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from trainer.config.data import DataConfig
from trainer.data.conversations import Reading
from trainer.data.examples import Encoded, Encoder
from trainer.data.messages import Conversation
from trainer.data.rendering import Segment, make_renderer
from trainer.data.truncation import PromptLimit

_UNLIMITED = 2**31 - 1


class RowEncoder:
    """Encodes rows as training with ``config`` does. Raises DataError for a template that cannot be used."""

    def __init__(self, config: DataConfig, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self.renderer = make_renderer(config, tokenizer)
        self.encoder = Encoder(tokenizer, end_ids, config.max_length, config.too_long, config.max_response_length)
        limit = config.max_prompt_length
        self._prompt_limit = PromptLimit(self.renderer, self.encoder, limit) if limit else None
        tail = self.renderer.tail
        ends = set(self.encoder.prompt_ids(Segment(tail, learned=False))) & set(end_ids)
        self.stray_tail = (
            "" if ends else tail.strip()
        )  # what the template writes after an answer, where it ends no turn

    def fit(self, reading: Reading) -> tuple[Conversation, tuple[str, ...]]:
        """The conversation with a prompt as long as allowed, and the limit at which it was cut. Raises DroppedRow."""
        if self._prompt_limit is None:
            return reading.conversation, ()
        fitted = self._prompt_limit.fit(reading.conversation, reading.tools)
        return fitted, () if fitted is reading.conversation else ("max_prompt_length",)

    def encode(self, reading: Reading) -> Encoded:
        """The examples of a row, and the limits at which it was cut. Raises DroppedRow."""
        conversation, cut = self.fit(reading)
        encoded = self.encoder.encode(self.renderer.segments(conversation, reading.tools))
        return Encoded(encoded.examples, (*cut, *encoded.cut))


def without_limits(config: DataConfig) -> DataConfig:
    """``config`` under which no row is too long."""
    return msgspec.structs.replace(
        config, max_length=_UNLIMITED, max_prompt_length=None, max_response_length=None, too_long="drop"
    )
