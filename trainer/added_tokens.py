"""Tokens that a run adds to the vocabulary of its base, or trains of it: ``added_tokens`` of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from trainer.errors import ConfigError


@dataclass(frozen=True)
class TrainedToken:
    """A token whose embedding is trained. ``pieces`` are the tokens that its text was before; its row begins as their
    mean. One that the base has already (not ``is_new``) begins as it is.
    """

    id: int
    text: str
    pieces: tuple[int, ...]
    is_new: bool


def add_tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[TrainedToken, ...]:
    """Make each of ``texts`` one token of ``tokenizer``, by id. Raises ConfigError for texts that cannot be one.

    They are no special tokens: their text stays in what a server answers.
    """
    known = tokenizer.get_vocab()
    pieces = {text: _pieces(tokenizer, text, texts) for text in texts}
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts if text not in known])
    tokens = []
    for text in texts:
        number: int = tokenizer.convert_tokens_to_ids(text)
        is_new = text not in known
        tokens.append(TrainedToken(number, text, pieces[text] if is_new else (number,), is_new))
    return tuple(sorted(tokens, key=lambda token: token.id))


def _pieces(tokenizer: Any, text: str, texts: Sequence[str]) -> tuple[int, ...]:
    if not text.strip():
        raise ConfigError("added_tokens: a token needs a text that is more than white space")
    if texts.count(text) > 1:
        raise ConfigError(f"added_tokens: {text!r} is named twice")
    return tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
