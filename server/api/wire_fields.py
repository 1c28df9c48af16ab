"""What the bodies of requests are made of: their base, and numbers and lists as clients send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.api.unserved import find_unserved, with_words

MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512  # of metadata


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is 3. Beyond 64 bits nothing here counts, and no message can carry it."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError("must be an integer of at most 64 bits")
    return value


def _all_whole(values: Any) -> Any:
    """``_whole`` of a long list, at no cost where nothing needs it."""
    if isinstance(values, list) and float in set(map(type, values)):
        return [int(x) if type(x) is float and x.is_integer() else x for x in values]
    return values


def _kept(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("must be at least 1, or -1 to keep as many tokens as fit")
    return tokens


def check_metadata(pairs: dict[str, str]) -> dict[str, str]:
    """Metadata as OpenAI bounds it. Raises ValueError."""
    if len(pairs) > MAX_PAIRS:
        raise ValueError(f"must have at most {MAX_PAIRS} pairs")
    if any(not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE for key, value in pairs.items()):
        raise ValueError(f"keys may have 1 to {MAX_KEY} characters, and values {MAX_VALUE}; one has more, or none")
    return pairs


Integer = Annotated[int, BeforeValidator(_whole)]
KeptTokens = Annotated[int, BeforeValidator(_whole), Field(ge=-1), AfterValidator(_kept)]
# fail_fast: a list of a million wrong items makes one error, not a million.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(fail_fast=True), BeforeValidator(_all_whole)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Metadata = Annotated[dict[str, str], AfterValidator(check_metadata)]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority"]  # there is one here, "default"


class Wire(BaseModel):
    """Base of all bodies.

    ``unsupported``: fields that clients know and that are not served, with the reason; ``unsupported_words``: the same
    for fields with such a word in their names.
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())
    unsupported: ClassVar[Mapping[str, str]] = {}
    unsupported_words: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        reasons = cls.unsupported
        if cls.unsupported_words:
            reasons = {**with_words(data.keys() - cls.model_fields.keys(), cls.unsupported_words), **reasons}
        if (name := find_unserved(data, reasons)) is not None:
            raise ValueError(f"`{name}` is not supported: {reasons[name]}")
        return data


class MetadataBody(Wire):
    """What the metadata of something kept is to be instead."""

    metadata: Metadata | None
