"""Log-probabilities in the forms that clients know: OpenAI's of chat and of completions, and vLLM's of a prompt.

In OpenAI's forms the tokens, joined, are the text, and their bytes the text's, so a token is written as it stands in
its place, and a special token that the text leaves out is written as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bases.token_spelling import readable
from server.api.outputs import TokenEntry
from server.engine.messages import TokenLogprobs
from server.text.detokenize import IncrementalDecoder
from server.text.echo import place_prompt
from server.text.tokenizer import TextProcessor

LEAST = -9999.0  # JSON has no minus infinity; other servers write this too
Pack = Callable[[Any], Any]  # what is done to each row, as soon as it is made


def _plain(row: Any) -> Any:
    return row


def chat_logprobs(
    entries: Sequence[TokenEntry], top: int, text: TextProcessor, *, by_id: bool = False, pack: Pack = _plain
) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion; ``top`` alternatives per token. ``by_id``: tokens named by ids."""
    content = []
    for entry in entries:
        value, spelt = entry.logprobs, _spelt(entry, text)
        told = _alternatives(value, top, text, entry.before, spelt, by_id=by_id)
        row = {
            **_chat_token(_named(value.token_id, spelt, by_id), spelt, value.logprob),
            "top_logprobs": [_chat_token(*one) for one in told],
        }
        content.append(pack(row))
    return {"content": content, "refusal": None}


def _named(token_id: int, spelt: bytes, by_id: bool) -> str:
    """What a token is called."""
    return f"token_id:{token_id}" if by_id else readable(spelt)


def _chat_token(token: str, spelt: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite(logprob), "bytes": list(spelt)}


def completion_logprobs(
    entries: Sequence[TokenEntry],
    top: int,
    text: TextProcessor,
    *,
    base_offset: int = 0,
    by_id: bool = False,
    pack: Pack = _plain,
) -> dict[str, list[Any]]:
    """``choices[].logprobs`` of a completion; offsets count from the beginning of the choice's whole text."""
    rows = [_Row(base_offset + e.offset, e.logprobs, e.logprobs.token_id, e.before, _spelt(e, text)) for e in entries]
    return _columns(rows, top, text, by_id, pack)


def prompt_logprobs(
    ids: Sequence[int],
    values: Sequence[TokenLogprobs | None],
    top: int,
    text: TextProcessor,
    *,
    prompt_text: str,
    by_id: bool = False,
    pack: Pack = _plain,
) -> dict[str, list[Any]]:
    """The part of an echoed prompt: null for its first token, which nothing predicts."""
    placed = zip(ids, place_prompt(text, ids, prompt_text), values, strict=True)
    rows = [_Row(place.offset, value, token_id, place.before, place.spelt) for token_id, place, value in placed]
    return _columns(rows, top, text, by_id, pack)


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Prompt and output, one after the other."""
    return {key: first[key] + second[key] for key in first}


def ranked_prompt(
    ids: Sequence[int],
    values: Sequence[TokenLogprobs | None],
    top: int,
    text: TextProcessor,
    *,
    pack: Pack = _plain,
) -> list[dict[str, dict[str, Any]] | None]:
    """``prompt_logprobs`` as vLLM answers it: for each token of the prompt it and the likeliest, by their ids."""
    decoder = IncrementalDecoder(text, skip_special_tokens=False)
    out: list[dict[str, dict[str, Any]] | None] = []
    for token_id, value in zip(ids, values, strict=True):
        before = decoder.before
        decoder.push(token_id)
        out.append(None if value is None else pack(_ranked(value, top, text, before)))
    return out


def _ranked(value: TokenLogprobs, top: int, text: TextProcessor, before: int | None) -> dict[str, dict[str, Any]]:
    ranked = [(value.token_id, value.logprob, value.rank)]
    ranked += [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(value.top[:top], 1)]
    return {
        str(token_id): {
            "logprob": _finite(logprob),
            "rank": rank,
            "decoded_token": text.token_text(token_id, before),
        }
        for token_id, logprob, rank in ranked
    }


class _Row(NamedTuple):
    """A token of a completion: where its text begins, its log-probabilities, what it stands behind, its bytes."""

    offset: int
    value: TokenLogprobs | None
    token_id: int
    before: int | None
    spelt: bytes


def _columns(rows: Sequence[_Row], top: int, text: TextProcessor, by_id: bool, pack: Pack) -> dict[str, list[Any]]:
    return {
        "tokens": [_named(row.token_id, row.spelt, by_id) for row in rows],
        "token_logprobs": [None if row.value is None else _finite(row.value.logprob) for row in rows],
        "top_logprobs": [pack(_top_logprobs(row, top, text, by_id)) for row in rows],
        "text_offset": [row.offset for row in rows],
    }


def _top_logprobs(row: _Row, top: int, text: TextProcessor, by_id: bool) -> dict[str, float] | None:
    """The chosen token, and the most likely ones, it among them or not."""
    if row.value is None:
        return None
    told = _alternatives(row.value, top, text, row.before, row.spelt, by_id=by_id)
    chosen = {_named(row.token_id, row.spelt, by_id): _finite(row.value.logprob)}
    return chosen | {token: _finite(logprob) for token, _, logprob in told}


def _spelt(entry: TokenEntry, text: TextProcessor) -> bytes:
    if entry.spelt is not None:
        return entry.spelt
    token_id = entry.logprobs.token_id
    return b"" if text.spelling.is_special(token_id) else text.token_bytes(token_id, entry.before)


def _alternatives(
    value: TokenLogprobs, top: int, text: TextProcessor, before: int | None, spelt: bytes, *, by_id: bool
) -> list[tuple[str, bytes, float]]:
    """The ``top`` likeliest tokens as they would stand in the chosen one's place, which is written ``spelt`` there.

    One that would read like another, or like nothing, is named as the vocabulary writes it, or else by its number.
    """
    named, told = {readable(spelt): value.token_id}, []
    for token_id, logprob in value.top[:top]:
        own = spelt if token_id == value.token_id else text.token_bytes(token_id, before)
        token = _named(token_id, own, by_id)
        if token_id != value.token_id and (not token or token in named):
            token = text.piece(token_id) or ""
        if token_id != value.token_id and (not token or token in named):
            token = _named(token_id, own, True)
        named[token] = token_id
        told.append((token, own, logprob))
    return told


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
