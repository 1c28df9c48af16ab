"""Where the tokens of a prompt stand in the text that the client gave."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bases.token_spelling import is_text
from server.text.detokenize import IncrementalDecoder, PlacedToken
from server.text.tokenizer import TextProcessor

_NOT_BLANK = re.compile(r"\S+")


def echo_of(text: TextProcessor, ids: Sequence[int]) -> str:
    """A prompt of token ids as a text: special tokens are a part of it, as the client asked for them by number."""
    return text.decode(ids, skip_special_tokens=False)


def place_prompt(text: TextProcessor, ids: Sequence[int], prompt_text: str) -> list[PlacedToken]:
    """The tokens ``ids`` in ``prompt_text``. Special tokens that the tokenizer added to it have no characters."""
    return (
        _by_spelling(text, ids, prompt_text)
        or _by_spans(text, ids, prompt_text)
        or _within(len(prompt_text), IncrementalDecoder(text, skip_special_tokens=False), ids)
    )


def _by_spelling(text: TextProcessor, ids: Sequence[int], prompt_text: str) -> list[PlacedToken] | None:
    """By what each token writes; None when that is not the text, for the tokenizer has normalized it."""
    wanted, at = prompt_text.encode(), 0
    decoder, places = IncrementalDecoder(text, skip_special_tokens=False), []
    for token_id in ids:
        spelt = decoder.spell(token_id)
        if wanted.startswith(spelt, at):
            at += len(spelt)
            places.append(decoder.place(token_id)[1])
        elif text.spelling.is_special(token_id):
            places.append(PlacedToken(decoder.before, b"", decoder.chars, decoder.chars))
        else:
            return None
    return places if at == len(wanted) else None


def _by_spans(text: TextProcessor, ids: Sequence[int], prompt_text: str) -> list[PlacedToken] | None:
    """By the characters that each token was made of; None when the tokens are not the text's."""
    spans = text.char_spans(prompt_text, list(ids))
    if spans is None:
        return None
    decoder, places, at = IncrementalDecoder(text, skip_special_tokens=False), [], 0
    placed = [
        decoder.place(token_id)[1]._replace(offset=start, end=end)
        for token_id, (start, _), end in zip(ids, spans, _ends(spans, prompt_text), strict=True)
    ]
    for run in _runs(placed):
        whole, begin = is_text(run[0].spelt), at
        written = prompt_text[at : max(at, run[-1].end)].encode()
        parts = not whole and b"".join(place.spelt for place in run) == written
        for place in run:
            stop = max(at, place.end)
            if parts:  # those of one character were made of the same
                places.append(place._replace(end=stop))
            else:  # the first of those that normalizing made of the same has it all
                begin = at if whole or stop > at else begin
                places.append(place._replace(spelt=prompt_text[at:stop].encode(), offset=begin, end=stop))
            at = stop
    return places


def _runs(placed: Sequence[PlacedToken]) -> list[list[PlacedToken]]:
    """Tokens that share characters, which are parts of them, together; others alone."""
    runs: list[list[PlacedToken]] = []
    for place in placed:
        if runs and place.offset < runs[-1][-1].end and not is_text(runs[-1][-1].spelt) and not is_text(place.spelt):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _ends(spans: Sequence[tuple[int, int]], prompt_text: str) -> list[int]:
    """Where the text of each token ends, with what was dropped behind it up to a blank, as accents are."""
    ends = [end for _, end in spans]
    for i in range(len(spans) - 2, -1, -1):
        if spans[i] == spans[i + 1]:
            ends[i] = ends[i + 1]
        elif ends[i] < (start := spans[i + 1][0]):
            dropped = _NOT_BLANK.match(prompt_text, ends[i], start)
            ends[i] = dropped.end() if dropped else ends[i]
    ends[ends.index(max(ends))] = len(prompt_text)
    return ends


def _within(length: int, decoder: IncrementalDecoder, ids: Sequence[int]) -> list[PlacedToken]:
    places = [decoder.place(token_id)[1] for token_id in ids]
    return [p._replace(offset=min(p.offset, length), end=min(p.end, length)) for p in places]
