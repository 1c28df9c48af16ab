"""Which tokens end what a model writes: one rule for serving and for what training appends. Imports no torch.

Checkpoints contradict themselves: the tokenizer names one end token, generation_config.json another, and the chat
template writes a third after every answer. A model may have learned any of them, so each ends its output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

_ASKED, _ANSWERED = "What is it?", "Probe answer."
_NESTED = ("text_config", "decoder")  # where the config of a larger model keeps that of its language model


def end_token_ids(directory: Path, tokenizer: Any, template: str | None = None) -> tuple[int, ...]:
    """What ends an output of the base in ``directory``; empty when nothing is said anywhere.

    The tokenizer's own comes first: training appends it where a row has none. Then the one that ``template`` (None:
    the tokenizer's own) ends a turn with, those of generation_config.json and those of config.json. ``tokenizer`` is
    None for a base without one.
    """
    found = [] if tokenizer is None else [tokenizer.eos_token_id, _end_of_turn(tokenizer, template)]
    found += _listed(_read(directory / "generation_config.json"))
    config = _read(directory / "config.json")
    for part in (config, *(config.get(name) for name in _NESTED)):
        found += _listed(part)
    return tuple(dict.fromkeys(token for token in found if token is not None))


def _end_of_turn(tokenizer: Any, template: str | None) -> int | None:
    def render(messages: list[dict[str, Any]]) -> str | None:
        try:
            return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False))
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError):
            return None  # it has none, or one that wants other messages than these

    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    return end_of_turn(render, lambda text: tokenizer(text, add_special_tokens=False).input_ids, special)


def end_of_turn(
    render: Callable[[list[dict[str, Any]]], str | None], encode: Callable[[str], list[int]], special: Collection[int]
) -> int | None:
    """The first of the ``special`` tokens that a template writes after an answer; ``render`` gives None for none."""
    for form in (str, _parts):  # templates want content as a text, or as a list of parts
        text = render([{"role": "user", "content": form(_ASKED)}, {"role": "assistant", "content": form(_ANSWERED)}])
        _, found, tail = (text or "").rpartition(_ANSWERED)
        if found:
            return next((token for token in encode(tail) if token in special), None)
    return None


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _read(file: Path) -> dict[str, Any]:
    """What ``file`` holds; nothing where it is missing or no JSON object, as transformers takes it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _listed(config: Any) -> Iterator[int]:
    found = config.get("eos_token_id") if isinstance(config, dict) else None
    for token in found if isinstance(found, list) else [found]:
        if isinstance(token, int) and not isinstance(token, bool):
            yield token
