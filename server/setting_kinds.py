"""The kinds of settings: how each is read from what an operator wrote, and what is no such value."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
)

from server.text.output.formats import NAMES as FORMAT_NAMES
from server.text.output.thoughts import MARKS

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?)/?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PATH = re.compile(r"[A-Za-z0-9._~/-]+")
_TEXT_OPTIONS = ("key", "secret", "token", "username", "password")  # though they may look like numbers
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*")


class WrongKindError(ValueError):
    """A value is not of the kind its setting takes; the setting says which that is."""


def hash_key(key: str) -> bytes:
    """What is kept of a key. Raises ValueError for an empty one, which would let everyone in."""
    if not key.strip():
        raise ValueError("an API key is empty; give each --api-key and --admin-key a value")
    return hashlib.sha256(key.strip().encode()).digest()


def read_text(path: str | Path) -> str:
    """A file the operator named. Raises ValueError saying why it cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}") from error


def _texts(value: object) -> list[str]:
    """The items of a list: repeated flags, a YAML list or mapping (adapter: {name: path}), text with commas."""
    if isinstance(value, dict):
        return [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    raise WrongKindError("not a list of texts")


def _names_and_paths(value: object) -> list[tuple[str, str]]:
    found = []
    for item in _texts(value):
        name, sep, path = item.partition("=")
        if not (name and sep and path):
            raise ValueError(f"--adapter wants NAME=PATH, not {item!r}")
        found.append((name, path))
    return found


def _options(value: object) -> list[tuple[str, Any]]:
    """The options of a file system; what is written as JSON, such as true or {"a": 1}, is read as that."""
    if isinstance(value, dict):
        return list(value.items())
    found = []
    for item in _texts(value):
        name, sep, text = item.partition("=")
        if not (name and sep):
            raise ValueError("--artifacts-option wants KEY=VALUE")  # the value may be a secret
        found.append((name, text if name in _TEXT_OPTIONS else _plain(text)))
    return found


def _plain(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _store_url(value: object) -> object:
    if isinstance(value, str) and value and not _URL.fullmatch(value):
        raise ValueError(f"--artifacts wants an address such as s3://bucket/prefix, not {value!r}")
    return value


def _collector(value: object) -> object:
    if isinstance(value, str) and value and not value.startswith(("http://", "https://")):
        raise ValueError(f"--otlp-traces-endpoint wants a URL such as http://localhost:4318/v1/traces, not {value!r}")
    return value


def _origins(value: object) -> list[str]:
    return [text if text == "*" else read_origin(text) for text in _texts(value)]


def read_origin(text: str) -> str:
    """An origin as browsers write it: scheme, host and perhaps a port. Raises ValueError for anything else."""
    found = _ORIGIN.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(
            f"--cors-origin wants an origin such as https://app.example or http://10.0.0.5:3000, not {text!r}"
        )
    return found[1]


def _methods(value: object) -> list[str]:
    methods = [text.upper() for text in _texts(value)]
    if unknown := sorted(set(methods) - {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "*"}):
        raise ValueError(f"--cors-method wants a method such as POST, not {unknown[0]!r}")
    return methods


def _header_names(value: object) -> list[str]:
    names = _texts(value)
    if wrong := [name for name in names if name != "*" and not _HEADER.fullmatch(name)]:
        raise ValueError(f"--cors-header wants the name of a header such as x-team, not {wrong[0]!r}")
    return names


def _root_path(value: object) -> object:
    if isinstance(value, str) and value.strip("/"):
        if not _PATH.fullmatch(value):
            raise ValueError(f"--root-path must be a path such as /llm, not {value!r}")
        return "/" + value.strip("/")
    return "" if isinstance(value, str) else value


def _one_of(flag: str, *names: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"{flag} must be one of {', '.join(names)}, not {value!r}")
        return value

    return check


def _digests(value: object) -> list[bytes]:
    return [hash_key(key) for key in _texts(value)]


def _digests_of_files(value: object) -> list[bytes]:
    found = []
    for path in _texts(value):
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            raise ValueError(f"{path} holds no key; write one a line")
        found += [hash_key(key) for key in lines]
    return found


Adapters = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_names_and_paths)]
Keys = Annotated[tuple[bytes, ...], BeforeValidator(_digests)]
KeyFiles = Annotated[tuple[bytes, ...], BeforeValidator(_digests_of_files)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
AllOrCount = Annotated[int, Field(ge=-1)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
Methods = Annotated[tuple[str, ...], BeforeValidator(_methods)]
HeaderNames = Annotated[tuple[str, ...], BeforeValidator(_header_names)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Options = Annotated[tuple[tuple[str, Any], ...], BeforeValidator(_options)]
StoreUrl = Annotated[str, BeforeValidator(_store_url)]
Collector = Annotated[str, BeforeValidator(_collector)]
Ratio = Annotated[float, Field(ge=0, le=1)]
RootPath = Annotated[str, BeforeValidator(_root_path)]
PortNumber = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Size = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Deadline = Annotated[float, Field(gt=0)]  # seconds
Loading = Literal["eager", "lazy"]
Gate = Literal["better", "none"]
ToolParser = Annotated[str, AfterValidator(_one_of("--tool-parser", "auto", *FORMAT_NAMES))]
ReasoningParser = Annotated[str, AfterValidator(_one_of("--reasoning-parser", "auto", "none", *MARKS))]
SocketAccess = Literal["owner", "group", "all"]
Level = Literal["debug", "info", "warning", "error"]
