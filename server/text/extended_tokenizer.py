"""Tokenizers that have an adapter's tokens beside the base's."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import Tokenizer

from adapters.errors import BaseMismatchError, PackageError
from adapters.package.added_tokens import AddedToken
from adapters.quoting import quote


def tokens_beside(base: Tokenizer, tokens: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
    """Those of ``tokens`` that ``base`` does not have. Raises BaseMismatchError when it has them otherwise."""
    new = []
    for token in tokens:
        text, number = base.id_to_token(token.id), base.token_to_id(token.content)
        if text is None and number is None:
            new.append(token)
        elif text != token.content:
            theirs = f"token {token.id} is {quote(token.content)} in the adapter's tokenizer"
            ours = f"{quote(text)} in the base's" if text is not None else f"and has the number {number} in the base's"
            raise BaseMismatchError(f"{theirs}, {ours}: the adapter was trained with another base's tokenizer")
    return tuple(new)


def extended_tokenizer(base: Tokenizer, tokens: Sequence[AddedToken]) -> Tokenizer:
    """A tokenizer that has ``tokens``, sorted by id, beside all of ``base``. Raises PackageError when it cannot."""
    extended = _beside(base)
    extended.add_tokens([_native(token) for token in tokens])  # at once: each call builds the search for all anew
    for token in tokens:
        if extended.token_to_id(token.content) != token.id:  # a tokenizer numbers what is added one after the other
            raise PackageError(
                f"the added token {quote(token.content)} has the number {token.id}, but comes as number "
                f"{extended.token_to_id(token.content)} behind the base's tokens; add all tokens in the order of their "
                "ids"
            )
    return extended


def _beside(base: Tokenizer) -> Tokenizer:
    """Another tokenizer that reads and writes as ``base`` does. The vocabulary, which is all of its weight, is shared.

    Reading the base's JSON once more comes to the same, and holds the interpreter's lock for 0.7 seconds where the
    vocabulary has 256,000 tokens.
    """
    other = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):  # before tokens, which get normalized
        if (found := getattr(base, part)) is not None:
            setattr(other, part, found)
    other.encode_special_tokens = base.encode_special_tokens
    own = base.get_added_tokens_decoder()
    other.add_tokens([own[token_id] for token_id in sorted(own)])
    return other


def _native(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
