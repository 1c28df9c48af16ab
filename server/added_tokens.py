"""A tokenizer with the tokens that an adapter brings beside those of its base."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import tokenizers
from tokenizers import Tokenizer

from adapters.added_tokens import AddedToken
from adapters.errors import BaseMismatchError, PackageError
from adapters.names import shown


def new_tokens(base: Tokenizer, tokens: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
    """Those of ``tokens`` that ``base`` does not have. Raises BaseMismatchError when it has them otherwise."""
    new = []
    for token in tokens:
        text, number = base.id_to_token(token.id), base.token_to_id(token.content)
        if text is None and number is None:
            new.append(token)
        elif text != token.content:
            theirs = f"token {token.id} is {shown(token.content)} in the adapter's tokenizer"
            ours = f"{shown(text)} in the base's" if text is not None else f"and has the number {number} in the base's"
            raise BaseMismatchError(f"{theirs}, {ours}: the adapter was trained with another base's tokenizer")
    return tuple(new)


def extended(base: Tokenizer, tokens: Sequence[AddedToken]) -> Tokenizer:
    """A copy of ``base`` that has ``tokens`` too, which are sorted by id. Raises PackageError when it cannot."""
    copy = Tokenizer.from_str(base.to_str())
    for special, run in groupby(tokens, key=lambda token: token.special):
        add = copy.add_special_tokens if special else copy.add_tokens
        add([_native(token) for token in run])
    for token in tokens:
        if copy.token_to_id(token.content) != token.id:  # a tokenizer numbers what is added one after the other
            raise PackageError(
                f"the added token {shown(token.content)} has the number {token.id}, but comes as number "
                f"{copy.token_to_id(token.content)} behind the base's tokens; add all tokens in the order of their ids"
            )
    return copy


def _native(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
