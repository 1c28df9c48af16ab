"""How well a tokenizer knows a text: tokens it has no word for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class VocabularyUse(msgspec.Struct, frozen=True):
    """Of ``tokens`` tokens, the share that is ``unknown`` to the tokenizer, and that stands for a part of a character.

    ``different`` of the ``size`` tokens of the vocabulary occur.
    """

    tokens: int
    different: int
    size: int
    unknown: float
    byte_pieces: float


def vocabulary_use(counts: Mapping[int, int], tokenizer: Any) -> VocabularyUse:
    """The use of ``tokenizer``'s vocabulary by a text whose tokens occur as often as ``counts`` says."""
    total = sum(counts.values())
    pieces = sum(count for token, count in counts.items() if _is_byte_piece(token, tokenizer))
    unknown = counts.get(tokenizer.unk_token_id, 0) if tokenizer.unk_token_id is not None else 0
    share = 1 / max(1, total)
    return VocabularyUse(total, len(counts), len(tokenizer), round(unknown * share, 4), round(pieces * share, 4))


def _is_byte_piece(token: int, tokenizer: Any) -> bool:
    text = tokenizer.convert_ids_to_tokens(token)
    return bool(_BYTE.fullmatch(text)) or _INCOMPLETE in tokenizer.decode([token])
