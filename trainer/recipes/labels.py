"""Sets whose answer is one of a list of labels: banking77, clinc150 (with ``oos``, out of scope) and emotion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.errors import DataError
from trainer.recipes.recipe import Recipe, Row, Split, csv_of, json_of, lines_of, malformed, shuffled

_BANKING77_INSTRUCTION = "Give the intent of this banking question: "


def _read_banking77(folder: Path, split: Split) -> Iterator[Row]:
    labels = json_of(folder / "categories.json")
    for row in shuffled(csv_of(folder / f"{split}.csv", "text", "category")):
        yield {"prompt": _BANKING77_INSTRUCTION + row["text"], "response": row["category"], "labels": labels,
               "text": row["text"]}  # fmt: skip


BANKING77 = Recipe(
    "banking77", "questions to a bank: one of 77 intents", _read_banking77, ("train", "test"), ("label_accuracy",)
)
_CLINC150_INSTRUCTION = "Give the intent of this request, or oos if it has none: "
_CLINC150_KEYS = {"train": "train", "validation": "val", "test": "test"}


def _read_clinc150(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / "data_full.json"
    content = json_of(file)
    try:
        labels = sorted({label for key in ("train", "oos_train") for _text, label in content[key]})
        pairs = [
            (text, label)
            for key in (_CLINC150_KEYS[split], f"oos_{_CLINC150_KEYS[split]}")
            for text, label in content[key]
        ]
        rows = [
            {"prompt": _CLINC150_INSTRUCTION + text, "response": label, "labels": labels, "text": text}
            for text, label in pairs
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(file) from error
    return iter(shuffled(rows))


CLINC150 = Recipe(
    "clinc150", "requests to an assistant: one of 150 intents, or out of scope", _read_clinc150,
    ("train", "validation", "test"), ("label_accuracy",),
)  # fmt: skip
_EMOTION_INSTRUCTION = "Give the emotion of this tweet: "
_EMOTION_NAMES = {"train": "train", "validation": "val", "test": "test"}


def _read_emotion(folder: Path, split: Split) -> Iterator[Row]:
    names = dict(line.split("\t", 1) for line in lines_of(folder / "mapping.txt") if "\t" in line)
    texts, labels = (lines_of(folder / f"{_EMOTION_NAMES[split]}_{part}.txt") for part in ("text", "labels"))
    if len(texts) != len(labels):
        raise DataError(f"{folder}: {len(texts)} lines in {_EMOTION_NAMES[split]}_text.txt, but {len(labels)} labels")
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        if label.strip() not in names:
            raise DataError(
                f"{folder / _EMOTION_NAMES[split]}_labels.txt line {number}: {label!r} is not in mapping.txt"
            )
        yield {
            "prompt": _EMOTION_INSTRUCTION + text.strip(),
            "response": names[label.strip()],
            "labels": list(names.values()),
            "text": text.strip(),
        }


EMOTION = Recipe(
    "emotion", "tweets: one of four emotions", _read_emotion, ("train", "validation", "test"), ("label_accuracy",)
)
