"""Where the tokens of a prompt stand in the text that the client gave."""

from __future__ import annotations

from collections.abc import Sequence

from server.text.detokenize import IncrementalDecoder, PlacedToken
from server.text.token_spelling import is_text
from server.text.tokenizer import TextProcessor


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
    """By the characters that each token was made of; what was dropped between two belongs to the second."""
    spans = text.char_spans(prompt_text, list(ids))
    if spans is None:
        return None
    ends = [end for _, end in spans]
    ends[ends.index(max(ends))] = len(prompt_text)
    decoder, places, at = IncrementalDecoder(text, skip_special_tokens=False), [], 0
    for token_id, (start, _), end in zip(ids, spans, ends, strict=True):
        place, stop = decoder.place(token_id)[1], max(at, end)
        if is_text(place.spelt):
            place = place._replace(spelt=prompt_text[at:stop].encode(), offset=at, end=stop)
        else:  # the parts of one character were made of the same
            place = place._replace(offset=start, end=stop)
        places.append(place)
        at = stop
    return places


def _within(length: int, decoder: IncrementalDecoder, ids: Sequence[int]) -> list[PlacedToken]:
    places = [decoder.place(token_id)[1] for token_id in ids]
    return [p._replace(offset=min(p.offset, length), end=min(p.end, length)) for p in places]
