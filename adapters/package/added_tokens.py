"""Tokens that an adapter's tokenizer has beside its base's: what turns their text into ids and back. Imports no torch.

A package names them in its manifest, or carries files of the tokenizer that was saved beside the adapter: its
tokenizer.json, tokenizer_config.json, added_tokens.json, special_tokens_map.json. Nothing else of these is read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import (
    ADDED_TOKENS_FILE,
    MANIFEST_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)
from adapters.quoting import describe_error, quote


class AddedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
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
    """The part of a tokenizer.json that is read, not yet taken apart: the rest may weigh tens of megabytes."""

    added_tokens: msgspec.Raw = msgspec.Raw(b"[]")


class _Described(msgspec.Struct, frozen=True, gc=False):
    """A token in the other files, where it stands under its number, or without one."""

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class _TokenizerConfig(msgspec.Struct, frozen=True):
    added_tokens_decoder: msgspec.Raw = msgspec.Raw(b"{}")


_Source = tuple[str, Sequence[AddedToken]]
T = TypeVar("T")


def read_added_tokens(
    directory: Path, named: tuple[AddedToken, ...] = (), limits: PackageLimits = DEFAULT_LIMITS
) -> tuple[AddedToken, ...]:
    """The added tokens of the package in ``directory``, by id: those ``named`` by its manifest and its tokenizer's.

    A tokenizer lists its base's own special tokens too. Where files describe one token otherwise, the manifest goes
    first, then the file that says most. Raises PackageError, also when they contradict each other.
    """
    sources: list[_Source] = [
        (MANIFEST_FILE, named),
        (TOKENIZER_FILE, _read_tokenizer(directory, limits)),
        (TOKENIZER_CONFIG_FILE, _read_config(directory, limits)),
        (ADDED_TOKENS_FILE, _read_numbers(directory, limits)),
    ]
    found: dict[int, tuple[AddedToken, str]] = {}
    for name, tokens in sources:
        _refuse_twice("id", [str(token.id) for token in tokens])
        _refuse_twice("text", [token.content for token in tokens])
        for token in tokens:
            first, where = found.setdefault(token.id, (token, name))
            if first.content != token.content:
                raise PackageError(
                    f"token {token.id} is {quote(first.content)} in {where} and {quote(token.content)} in {name}; "
                    "save the tokenizer again beside the adapter"
                )
    tokens = [found[number][0] for number in sorted(found)]
    _refuse_twice("text", [token.content for token in tokens])
    return tuple(tokens)


def check_added(tokens: Sequence[AddedToken], limits: PackageLimits = DEFAULT_LIMITS) -> None:
    """PackageError when ``tokens``, which a package has beside its base's, are too many or too long."""
    if len(tokens) > limits.max_added_tokens:
        raise PackageError(f"the package adds {len(tokens)} tokens; at most {limits.max_added_tokens} are served")
    chars = sum(len(token.content) for token in tokens)
    if chars > limits.max_added_token_chars:
        raise PackageError(
            f"the added tokens of the package have {chars} characters together; at most "
            f"{limits.max_added_token_chars} are served"
        )


def unnamed_rows(tokens: Sequence[AddedToken], base_size: int, size: int) -> str | None:
    """What to tell whoever uploaded an embedding of ``size`` rows over one of ``base_size`` that names none of them."""
    if size <= base_size or any(token.id >= base_size for token in tokens):
        return None
    return (
        f"the adapter's embedding has {size - base_size} rows more than the base's, and the package names no token for "
        "them: their text is read as the base's tokens. Add the tokenizer's files, as its save_pretrained writes them"
    )


def unnamed_tokens(ids: Sequence[int]) -> list[str]:
    """What to tell whoever uploaded rows for ``ids`` of the base's vocabulary, of which no tokenizer knows the text."""
    if not ids:
        return []
    listed = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    return [
        f"the adapter has rows for {len(ids)} token ids ({listed}) that neither the base's tokenizer nor the package "
        "names: their text is read as other tokens. Add the tokenizer's files, as its save_pretrained writes them"
    ]


def _read(path: Path, max_bytes: int, type_: type[T]) -> T | None:
    """What is wanted of the file ``path``, None without one."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > max_bytes:
            raise PackageError(f"{path.name} is larger than {max_bytes} bytes; leave it out")
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(path.name, error) from error


def _malformed(name: str, error: Exception) -> PackageError:
    return PackageError(f"{name}: {describe_error(error)}; leave it out if the adapter adds no tokens")


def _read_list(raw: msgspec.Raw, name: str, limits: PackageLimits, type_: type[T]) -> T:
    """A list of tokens as the file ``name`` has it; one that is too long is not taken apart."""
    if len(raw) > limits.max_token_list_bytes:
        raise PackageError(f"the added tokens of {name} take more than {limits.max_token_list_bytes} bytes")
    if (count := bytes(raw).count(b'"content"')) > limits.max_listed_tokens:
        raise PackageError(f"{name} lists {count} added tokens; at most {limits.max_listed_tokens} are read")
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(name, error) from error


def _read_tokenizer(directory: Path, limits: PackageLimits) -> list[AddedToken]:
    found = _read(directory / TOKENIZER_FILE, limits.max_tokenizer_bytes, _Tokenizer) or _Tokenizer()
    return _read_list(found.added_tokens, TOKENIZER_FILE, limits, list[AddedToken])


def _read_config(directory: Path, limits: PackageLimits) -> list[AddedToken]:
    name = TOKENIZER_CONFIG_FILE
    found = _read(directory / name, limits.max_token_list_bytes, _TokenizerConfig) or _TokenizerConfig()
    listed = _read_list(found.added_tokens_decoder, name, limits, dict[str, _Described] | None)  # type: ignore[arg-type]
    return [_token(name, {"id": id_, **msgspec.structs.asdict(one)}) for id_, one in (listed or {}).items()]


def _read_numbers(directory: Path, limits: PackageLimits) -> list[AddedToken]:
    """Those of added_tokens.json, which has no more than numbers; special are those with a role of their own."""
    numbers = _read(directory / ADDED_TOKENS_FILE, limits.max_json_bytes, dict[str, int]) or {}
    roles = _read(directory / SPECIAL_TOKENS_FILE, limits.max_json_bytes, dict[str, Any]) or {} if numbers else {}
    special = set[str]()
    for role in roles.values():
        listed = role if isinstance(role, list) else [role]
        texts = [one.get("content") if isinstance(one, dict) else one for one in listed]
        special |= {text for text in texts if isinstance(text, str)}  # other tools keep other things there
    flags = {text: {"special": text in special, "normalized": text not in special} for text in numbers}
    return [_token(ADDED_TOKENS_FILE, {"id": numbers[text], "content": text, **flags[text]}) for text in numbers]


def _token(name: str, fields: Mapping[str, object]) -> AddedToken:
    try:
        return msgspec.convert(fields, AddedToken, strict=False)
    except msgspec.ValidationError as error:
        raise _malformed(name, error) from error


def _refuse_twice(what: str, values: list[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise PackageError(f"the package names {count} added tokens with the {what} {quote(value)}")
