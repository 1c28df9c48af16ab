"""Tokens that an adapter's tokenizer has beside its base's: what turns their text into ids and back. Imports no torch.

A package names them in its manifest, or carries the tokenizer that was saved beside the adapter; nothing else of that
tokenizer is read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import TOKENIZER_FILE
from adapters.quoting import describe_error, quote


class AddedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token as the tokenizers library describes it. ``special`` ones are left out of decoded text unless asked for.

    The other flags say how it is found in a text: as a whole word only, with the white space around it, before or
    after the text is normalized.
    """

    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    content: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class _Tokenizer(msgspec.Struct, frozen=True):
    """The part of a tokenizer.json that is read."""

    added_tokens: list[AddedToken] = []


def read_added_tokens(
    directory: Path, named: tuple[AddedToken, ...] = (), limits: PackageLimits = DEFAULT_LIMITS
) -> tuple[AddedToken, ...]:
    """The added tokens of the package in ``directory``, by id: those ``named`` by its manifest, or its tokenizer's.

    A tokenizer lists its base's own special tokens too. Raises PackageError.
    """
    path = directory / TOKENIZER_FILE
    tokens = named or (_read_tokenizer(path, limits) if path.is_file() else ())
    if len(tokens) > limits.max_added_tokens:
        raise PackageError(f"the package names {len(tokens)} added tokens; {limits.max_added_tokens} are read")
    _refuse_twice("id", [str(token.id) for token in tokens])
    _refuse_twice("text", [token.content for token in tokens])
    return tuple(sorted(tokens, key=lambda token: token.id))


def _read_tokenizer(path: Path, limits: PackageLimits) -> tuple[AddedToken, ...]:
    try:
        if path.stat().st_size > limits.max_tokenizer_bytes:
            raise PackageError(f"{path.name} is larger than {limits.max_tokenizer_bytes} bytes; leave it out")
        return tuple(msgspec.json.decode(path.read_bytes(), type=_Tokenizer).added_tokens)
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(
            f"{path.name}: {describe_error(error)}; leave it out if the adapter adds no tokens"
        ) from error


def _refuse_twice(what: str, values: list[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise PackageError(f"the package names {count} added tokens with the {what} {quote(value)}")
