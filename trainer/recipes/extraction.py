"""Sets whose answer is what a text holds: entities (wnut17, resume_ner), triples (chatglm_spo), slots (snips).

Named entities are published as one tagged token a line, with a blank line between sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.recipes.recipe import Recipe, Row, Split, json_of, jsonl_of, lines_of, malformed, shuffled

Entity = tuple[str, list[str]]  # its type and its tokens
_TAGS = "BIMES"


def tagged_sentences(path: Path) -> Iterator[tuple[list[str], list[str], list[Entity]]]:
    """Tokens, their tags and the entities of every sentence.

    Reads BIO and BMES: B and S begin an entity, I, M and E go on with it.
    """
    tokens: list[str] = []
    tags: list[str] = []
    entities: list[Entity] = []
    going_on = ""  # the type of the entity that the next tag may go on with
    for number, line in enumerate([*lines_of(path), ""], 1):
        if not line.strip():
            if tokens:
                yield tokens, tags, entities
            tokens, tags, entities, going_on = [], [], [], ""
            continue
        token, place, kind = _token_and_tag(path, number, line)
        tokens.append(token)
        tags.append(f"{place}-{kind}" if kind else "O")
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


def _token_and_tag(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """Token, place in the entity and its type; both empty outside of entities."""
    parts = line.split("\t") if "\t" in line else line.split(" ")
    tag = parts[-1].strip()
    place, dash, kind = tag.partition("-")
    if len(parts) == 2 and parts[0] and (tag == "O" or (dash and kind and place in _TAGS)):
        return parts[0], place if kind else "", kind
    raise DataError(f"{path} line {number} is not a token and its tag: {line[:40]!r}")


_WNUT17_INSTRUCTION = "Give the named entities in this text as JSON: "
_WNUT17_FILES = {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"}


def _read_wnut17(folder: Path, split: Split) -> Iterator[Row]:
    for tokens, tags, entities in shuffled(tagged_sentences(folder / _WNUT17_FILES[split])):  # published by source
        prompt, response = _WNUT17_INSTRUCTION + " ".join(tokens), entities_as_json(entities, " ")
        yield {"prompt": prompt, "response": response, "tokens": tokens, "tags": tags}


WNUT17 = Recipe(
    "wnut17",
    "named entities in posts and comments, as JSON",
    _read_wnut17,
    ("train", "validation", "test"),
    ("entity_f1",),
)
_RESUME_NER_INSTRUCTION = "找出下面简历文本中的实体，用JSON回答："
_RESUME_NER_FILES = {"train": "train.char.bmes", "validation": "dev.char.bmes", "test": "test.char.bmes"}


def _read_resume_ner(folder: Path, split: Split) -> Iterator[Row]:
    for characters, tags, entities in tagged_sentences(folder / _RESUME_NER_FILES[split]):
        prompt, response = _RESUME_NER_INSTRUCTION + "".join(characters), entities_as_json(entities, "")
        yield {"prompt": prompt, "response": response, "tokens": characters, "tags": tags}


RESUME_NER = Recipe(
    "resume_ner",
    "named entities in Chinese résumés, as JSON",
    _read_resume_ner,
    ("train", "validation", "test"),
    ("entity_f1",),
)
_CHATGLM_SPO_FILES = {"train": "spo_0.json", "test": "spo_1.json"}


def _read_chatglm_spo(folder: Path, split: Split) -> Iterator[Row]:
    for row in jsonl_of(folder / _CHATGLM_SPO_FILES[split], "instruction", "input", "output"):
        yield {"prompt": row["instruction"] + row["input"], "response": row["output"]}


CHATGLM_SPO = Recipe(
    "chatglm_spo", "triples in Chinese fault reports, one a line", _read_chatglm_spo, ("train", "test"), ("triple_f1",)
)
_SNIPS_INSTRUCTION = "Give the intent and slots of this request as JSON: "


def _read_snips(folder: Path, split: Split) -> Iterator[Row]:
    rows = []
    for intent in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        file = folder / intent / (f"train_{intent}_full.json" if split == "train" else f"validate_{intent}.json")
        content = json_of(file, errors="replace")  # two of the published files are not UTF-8 throughout
        try:
            rows += [_snips_row(intent, item["data"]) for item in content[intent]]
        except (KeyError, TypeError, AttributeError) as error:
            raise malformed(file) from error
    if not rows:
        raise malformed(folder)
    return iter(shuffled(rows))


def _snips_row(intent: str, spans: list[dict[str, Any]]) -> Row:
    text = "".join(span["text"] for span in spans).strip()
    slots: dict[str, str] = {}
    for span in spans:
        if "entity" in span:
            slots.setdefault(span["entity"], span["text"].strip())
    response = json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)
    return {"prompt": _SNIPS_INSTRUCTION + text, "response": response}


SNIPS = Recipe(
    "snips", "requests to an assistant: intent and slots as JSON", _read_snips, ("train", "test"),
    ("slot_f1", "exact_match", "json_valid"),
)  # fmt: skip
