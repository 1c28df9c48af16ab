"""Log-probabilities as OpenAI writes them, in the forms of chat completions and of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.api.sequence import TokenEntry
from server.detokenize import IncrementalDecoder
from server.engine.messages import TokenLogprobs
from server.text import TextProcessor

LEAST = -9999.0  # JSON has no minus infinity; other servers write this too


def chat_logprobs(entries: Sequence[TokenEntry], top: int, text: TextProcessor) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion; ``top`` alternatives per token."""
    content = []
    for entry in entries:
        chosen = _chat_token(entry.logprobs.token_id, entry.logprobs.logprob, text)
        alternatives = [_chat_token(token_id, value, text) for token_id, value in entry.logprobs.top[:top]]
        content.append({**chosen, "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _chat_token(token_id: int, logprob: float, text: TextProcessor) -> dict[str, Any]:
    return {
        "token": text.token_text(token_id),
        "logprob": _finite(logprob),
        "bytes": list(text.token_bytes(token_id)),
    }


def completion_logprobs(
    entries: Sequence[TokenEntry], top: int, text: TextProcessor, *, base_offset: int = 0
) -> dict[str, list[Any]]:
    """``choices[].logprobs`` of a completion; offsets count from the beginning of the choice's whole text."""
    rows = [(entry.logprobs.token_id, entry.logprobs, base_offset + entry.offset) for entry in entries]
    return _columns(rows, top, text)


def prompt_logprobs(
    ids: Sequence[int], values: Sequence[TokenLogprobs | None], top: int, text: TextProcessor, *, prompt_text: str
) -> dict[str, list[Any]]:
    """The part of an echoed prompt: null for its first token, which nothing predicts."""
    decoder = IncrementalDecoder(text)
    rows, offset = [], 0
    for token_id, value in zip(ids, values, strict=True):
        rows.append((token_id, value, min(offset, len(prompt_text))))
        offset += len(decoder.push(token_id))
    return _columns(rows, top, text)


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Prompt and output, one after the other."""
    return {key: first[key] + second[key] for key in first}


def _columns(
    rows: Sequence[tuple[int, TokenLogprobs | None, int]], top: int, text: TextProcessor
) -> dict[str, list[Any]]:
    return {
        "tokens": [text.token_text(token_id) for token_id, _, _ in rows],
        "token_logprobs": [None if value is None else _finite(value.logprob) for _, value, _ in rows],
        "top_logprobs": [None if value is None else _top(value, top, text) for _, value, _ in rows],
        "text_offset": [offset for _, _, offset in rows],
    }


def _top(value: TokenLogprobs, top: int, text: TextProcessor) -> dict[str, float] | None:
    """The most likely tokens and the chosen one; of tokens that read alike the likeliest is kept."""
    if top == 0:
        return None
    out: dict[str, float] = {}
    for token_id, logprob in [*value.top[:top], (value.token_id, value.logprob)]:
        out.setdefault(text.token_text(token_id), _finite(logprob))
    return out


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
