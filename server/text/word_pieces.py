"""The tokens of a text as transformers' token classification sees them: where they stand, and which go on a word.

Knows neither labels nor what they become.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer


class WordPiece(NamedTuple):
    """A token between the characters ``start`` and ``end`` of a text, spelt as its vocabulary has it.

    One that ``continues`` belongs to the word of the token before it. One that ``is_added`` is not of the text: it
    stands around it.
    """

    spelling: str
    start: int
    end: int
    continues: bool
    is_added: bool


def word_pieces(
    backend: Tokenizer, unknown: int | None, text: str, encoding: Encoding, count: int
) -> Iterator[WordPiece]:
    """The last ``count`` tokens of ``encoding``, which ``backend`` made of ``text``; ``unknown`` stands for all others.

    Where the vocabulary marks pieces that go on a word (##), one does that is spelt otherwise than its text. Elsewhere
    one does before which there is no space.
    """
    marks = bool(getattr(backend.model, "continuing_subword_prefix", None))
    for place in range(len(encoding.ids) - count, len(encoding.ids)):
        start, end = encoding.offsets[place]
        spelling, written = encoding.tokens[place], text[start:end]
        continues = len(spelling) != len(written) if marks else start > 0 and " " not in text[start - 1 : start + 1]
        if encoding.ids[place] == unknown:
            spelling, continues = written, False
        yield WordPiece(spelling, start, end, continues, bool(encoding.special_tokens_mask[place]))
