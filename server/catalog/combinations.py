"""Combinations of adapters, as requests name them: ``a:0.7+b:0.3``, and which versions cannot be members of one.

Whether the effects of their kinds add is the engine's business; here is what can be told without their tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from adapters.package.manifest import PooledRef
from adapters.package.sentence_model import SentenceModel
from adapters.quoting import quote
from server.adapter_key import PLUS
from server.catalog.versions import AdapterVersion
from server.errors import InvalidRequestError

MAX_MEMBERS = 8
MAX_WEIGHT = 100.0
NOT_COMBINABLE = "adapters_not_combinable"
_WEIGHT = re.compile(r"-?(\d{1,9}(\.\d{0,25})?|\.\d{1,25})(e-?\d{1,3})?")


class Part(NamedTuple):
    """A member as it is named, with or without its version."""

    model: str
    weight: float


def split_model(model: str, base: str, is_known: Callable[[str], bool], most: int = MAX_MEMBERS) -> list[Part]:
    """The members that ``model`` names, be it after ``base:``; of no combination that is itself alone, with weight 1.

    Only what stands behind a name that ``is_known`` is a weight. Raises InvalidRequestError.
    """
    named = model.removeprefix(f"{base}:").split(PLUS)
    if len(named) > most:
        raise InvalidRequestError(
            f"{len(named)} adapters are to be combined; one request may combine {most} (--max-combined)",
            param="model",
            code="too_many_adapters",
        )
    parts = [_part(text, lambda name: name == base or is_known(name)) for text in named]
    names = [part.model for part in parts]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise InvalidRequestError(f"{quote(twice)} is named twice; name it once, its weights added up", param="model")
    if len(parts) > 1 and base in names:
        raise InvalidRequestError(f"{quote(base)} is the base of every combination; name adapters only", param="model")
    return parts


def _part(text: str, is_known: Callable[[str], bool]) -> Part:
    name, _, weight = text.rpartition(":")
    if is_known(text) or not is_known(name.partition("@")[0]) or not _WEIGHT.fullmatch(weight):
        return Part(text, 1.0)
    if abs(value := float(weight)) > MAX_WEIGHT:
        raise InvalidRequestError(
            f"the weight of {quote(name)} is {weight}; it may be from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}", param="model"
        )
    return Part(name, value)


def check_members(versions: Sequence[AdapterVersion]) -> None:
    """Raise InvalidRequestError unless ``versions`` read and write the same tokens, in conversations of one form.

    One of them may have a head, by which all are answered.
    """
    first, headed = versions[0], None
    for version in versions:
        if version.num_virtual_tokens:
            raise not_combinable(version, "its virtual tokens stand before the prompt")
        if version.vocab_size is not None or version.tokens:
            raise not_combinable(version, "it has tokens of its own")
        if version.head is not None:
            if headed is not None:
                raise not_combinable(version, f"it has a head of its own, and so has {headed.key}")
            headed = version
        if _embeds(version) != _embeds(first):
            raise not_combinable(version, f"it makes other embeddings than {first.key}, or one of them makes none")
        if replace(version.chat, warnings=()) != replace(first.chat, warnings=()):
            raise not_combinable(version, f"its chat template or end tokens are not those of {first.key}")


def _embeds(version: AdapterVersion) -> PooledRef | SentenceModel | None:
    """How it makes embeddings, if it was trained for that: no head does."""
    if version.head is not None:
        return None
    trained = None if version.manifest is None else version.manifest.pooled
    return trained or version.sentence_model


def not_combinable(version: AdapterVersion, reason: str) -> InvalidRequestError:
    """What is raised for a version that goes with no other."""
    return InvalidRequestError(
        f"{version.key} cannot be combined with other adapters: {reason} (kind {version.kind}). Name it alone, or "
        "combine adapters whose effects add, such as LoRA, LoHa, LoKr, VeRA or FourierFT",
        param="model",
        code=NOT_COMBINABLE,
    )
