"""What a package says of conversations: its own chat template, special tokens and end tokens. Imports no torch.

They are those of the tokenizer that was saved beside the adapter. Nothing is rendered here, and nothing refused: an
adapter answers without them, so what cannot be read is told in ``warnings``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import GENERATION_FILE, SPECIAL_TOKENS_FILE, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE
from adapters.quoting import describe_error

MAX_TEMPLATE_BYTES = 1 << 20  # the longest in use have 30,000
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEYS = (*_ROLES, "chat_template", "eos_token_id")
_CONFIG = msgspec.defstruct("_Config", [(key, msgspec.Raw, msgspec.Raw()) for key in _KEYS])  # others are skipped
_MAX_VALUE_BYTES = 65_536  # of a token's description, or a list of end tokens
_NO_TEXT = object()
_MAX_TOKEN_CHARS = 1024
_MAX_END_TOKENS = 64


@dataclass(frozen=True)
class PackageChat:
    """How conversations of an adapter are written. Compares by value.

    ``template`` is Jinja's text, None where the base's is used; ``special_tokens`` are (role, text) as
    ``apply_chat_template`` gives them to it, without a text where its tokenizer says that it has none;
    ``end_token_ids`` end an output beside the base's; ``warnings`` are for whoever uploaded it; with ``written_tools``
    tools and calls are written as text, whatever the template knows of them.
    """

    template: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()
    end_token_ids: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    written_tools: bool = False

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return dict(self.special_tokens).get("eos_token") or None

    @property
    def template_sha256(self) -> str | None:
        """Hash of the template, as a manifest records that of the training."""
        return None if self.template is None else hashlib.sha256(self.template.encode()).hexdigest()


NO_CHAT = PackageChat()


class _Named(msgspec.Struct, frozen=True, gc=False):
    name: str
    template: str


def read_chat(directory: Path, limits: PackageLimits = DEFAULT_LIMITS) -> PackageChat:
    """What the package in ``directory`` says; ``end_token_ids`` are those that its generation_config.json names."""
    problems: list[str] = []
    configs = [
        _read(directory / name, limits, problems) for name in (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE)
    ]  # what the first says counts, as in transformers
    special = {role: "" for role in _ROLES if configs[0].get(role, "") is None}
    special |= {role: text for config in reversed(configs) for role, text in _special_tokens(config)}
    return PackageChat(
        template=_template(directory / TEMPLATE_FILE, configs[0].get("chat_template"), problems),
        special_tokens=tuple(sorted(special.items())),
        end_token_ids=tuple(_end_token_ids(_read(directory / GENERATION_FILE, limits, problems))),
        warnings=tuple(problems),
    )


def _read(path: Path, limits: PackageLimits, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        most = limits.max_token_list_bytes if path.name == TOKENIZER_CONFIG_FILE else limits.max_json_bytes
        if path.stat().st_size > most:
            raise ValueError(f"it is longer than {most} bytes")
        found = msgspec.structs.asdict(msgspec.json.decode(path.read_bytes(), type=_CONFIG))
        if len(found["chat_template"]) > limits.max_json_bytes:
            raise ValueError(f"the templates in it are longer than {limits.max_json_bytes} bytes")
        return {key: _decoded(key, value) for key, value in found.items() if value}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} is not used: {describe_error(error)}")
        return {}


def _decoded(key: str, value: msgspec.Raw) -> object:
    """A value of a configuration; what a list holds that has none of the expected is never made."""
    if key != "chat_template":
        return msgspec.json.decode(value) if len(value) <= _MAX_VALUE_BYTES else None
    try:
        return msgspec.json.decode(value, type=str | list[_Named] | dict[str, str] | None)
    except msgspec.DecodeError:
        return _NO_TEXT


def _template(file: Path, named: object, problems: list[str]) -> str | None:
    """The template in ``file``, which counts before what tokenizer_config.json names."""
    try:
        if file.is_file():
            with file.open("rb") as opened:
                return _checked(opened.read(MAX_TEMPLATE_BYTES + 1))
        if isinstance(named, list):  # several by name; transformers takes this one unless there are tools
            named = {entry.name: entry.template for entry in named}
        if isinstance(named, dict):
            named = named["default"]
        if named is not None and not isinstance(named, str):
            raise TypeError("it is no text")
        return _checked(named.encode()) if named else None
    except KeyError as error:
        problems.append(f"its chat templates are not used: there is none with the name {describe_error(error)}")
    except (OSError, ValueError, TypeError) as error:
        problems.append(f"its chat template is not used: {describe_error(error)}")
    return None


def _checked(template: bytes) -> str | None:
    if len(template) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"it is longer than {MAX_TEMPLATE_BYTES} bytes")
    return template.decode() or None


def _special_tokens(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Tokens by role; they are written as a text, or as an object that describes the token."""
    for role in _ROLES:
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and 0 < len(text) <= _MAX_TOKEN_CHARS:
            yield role, text


def _end_token_ids(config: dict[str, Any]) -> Iterator[int]:
    found = config.get("eos_token_id")
    for token in (found if isinstance(found, list) else [found])[:_MAX_END_TOKENS]:
        if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
            yield token
