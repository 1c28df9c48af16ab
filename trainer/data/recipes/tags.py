"""Named entities written as one tagged token a line, a blank line between sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.files import lines_of
from trainer.errors import DataError

Entity = tuple[str, list[str]]  # its type and its tokens
_TAGS = "BIMES"


def tagged_sentences(path: Path) -> Iterator[tuple[list[str], list[Entity]]]:
    """Tokens and entities of every sentence. Reads BIO and BMES: B and S begin an entity, I, M and E go on with it."""
    tokens: list[str] = []
    entities: list[Entity] = []
    going_on = ""  # the type of the entity that the next tag may go on with
    for number, line in enumerate([*lines_of(path), ""], 1):
        if not line.strip():
            if tokens:
                yield tokens, entities
            tokens, entities, going_on = [], [], ""
            continue
        token, place, kind = _parse(path, number, line)
        tokens.append(token)
        if not kind:
            going_on = ""
        elif place in "IME" and kind == going_on:
            entities[-1][1].append(token)
        else:  # an I without its B begins an entity, as it does for conlleval
            entities.append((kind, [token]))
            going_on = kind


def entities_as_json(entities: list[Entity], joiner: str) -> str:
    """``{"person": ["Ada Lovelace"]}``: types and texts in order of appearance."""
    by_type: dict[str, list[str]] = {}
    for kind, tokens in entities:
        by_type.setdefault(kind, []).append(joiner.join(tokens))
    return json.dumps(by_type, ensure_ascii=False)


def _parse(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """Token, place in the entity and its type; both empty outside of entities."""
    parts = line.split("\t") if "\t" in line else line.split(" ")
    tag = parts[-1].strip()
    place, dash, kind = tag.partition("-")
    if len(parts) == 2 and parts[0] and (tag == "O" or (dash and kind and place in _TAGS)):
        return parts[0], place if kind else "", kind
    raise DataError(f"{path} line {number} is not a token and its tag: {line[:40]!r}")
