"""Rows of words with tags, and of texts with spans: what is learned of them, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.trainer.pooling.support import data_of
from tests.trainer.support import make_config, write_jsonl
from trainer.errors import DataError
from trainer.pooling.examples import PooledCollator, PooledExample, first_tokens
from trainer.pooling.pooled_data import PooledData

ADA = {"tokens": ["Ada", "Lovelace", "saw", "Paris"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]}
TAGS = ("O", "B-LOC", "B-PER", "I-PER")


def load(folder: Path, base: Path, rows: list[Any], *overrides: str) -> PooledData:
    options = ["task=token-classification", "data.validation=0", "eval_steps=null", *overrides]
    return data_of(make_config(folder, base, *options, rows=rows), base)


def tagged(data: PooledData, base: Path, row: int = 0) -> list[tuple[str, str]]:
    """Each word's first token, with its tag."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    example, labels = data.train[row], data.labels
    assert labels is not None
    pairs = zip(example.places, example.classes, strict=True)
    return [(tokenizer.decode([example.texts[0][place]]), labels.names[tag]) for place, tag in pairs]


@pytest.mark.parametrize(
    ("row", "overrides"),
    [
        (ADA, ()),
        ({"words": ADA["tokens"], "tags": ["B-PER", "E-PER", "O", "S-LOC"]}, ()),
        ({"tokens": "Ada Lovelace saw Paris", "tags": "B-PER I-PER O B-LOC"}, ()),
        ({"tokens": '["Ada", "Lovelace", "saw", "Paris"]', "tags": "[2, 3, 0, 1]"},
         ("task.labels=[O,B-LOC,B-PER,I-PER]",)),
        ({"w": ADA["tokens"], "t": ADA["ner_tags"]}, ("task.columns.words=w", "task.columns.tags=t")),
        ({"text": "Ada Lovelace saw Paris", "entities": [{"start": 0, "end": 12, "label": "PER"},
                                                         {"start": 17, "end": 22, "label": "LOC"}]}, ()),
        ({"text": "Ada Lovelace saw Paris", "label": [[17, 22, "LOC"], [0, 12, "PER"]]}, ()),
    ],
)  # fmt: skip
def test_words_and_spans_come_to_the_same(
    tiny_base: Path, tmp_path: Path, row: dict[str, Any], overrides: tuple[str, ...]
) -> None:
    data = load(tmp_path, tiny_base, [row], *overrides)
    assert data.labels is not None
    assert data.labels.names == TAGS
    assert data.learned == "token-classification"
    assert [tag for _, tag in tagged(data, tiny_base)] == ADA["ner_tags"]
    assert list(data.train[0].texts[0]) == AutoTokenizer.from_pretrained(tiny_base)("Ada Lovelace saw Paris").input_ids
    assert [first.strip()[0] for first, _ in tagged(data, tiny_base)] == ["A", "L", "s", "P"]
    assert data.counts == {"O": 1, "B-LOC": 1, "B-PER": 1, "I-PER": 1}


def test_names_of_spans_make_the_tags(tiny_base: Path, tmp_path: Path) -> None:
    row = {"text": "Ada", "entities": [[0, 3, "PER"]]}
    data = load(tmp_path, tiny_base, [row, {"text": "none", "entities": []}], "task.labels=[PER, LOC]")
    assert data.labels is not None
    assert data.labels.names == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert "warning: no word to train on has the label 'I-PER', 'B-LOC', 'I-LOC'" in data.notes


def test_parts_of_speech_are_no_spans(tiny_base: Path, tmp_path: Path) -> None:
    data = load(tmp_path, tiny_base, [{"tokens": ["a", "dog"], "pos_tags": ["DET", "NOUN"]}])
    assert data.learned == "tagging"
    assert data.labels is not None
    assert data.labels.names == ("DET", "NOUN")


def test_characters_are_joined_without_spaces(tiny_base: Path, tmp_path: Path) -> None:
    row = {"tokens": [*"我在1号"], "tags": ["O", "O", "B-NO", "I-NO"]}
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base)
    assert tokenizer.decode(load(tmp_path, tiny_base, [row]).train[0].texts[0]) == "我在1号"
    spaced = load(tmp_path / "b", tiny_base, [row], 'task.joiner=" "').train[0]
    assert tokenizer.decode(spaced.texts[0]) == "我 在 1 号"


def test_long_texts_keep_the_words_that_are_left(tiny_base: Path, tmp_path: Path) -> None:
    rows = [ADA, {"tokens": ["x"] * 30, "ner_tags": ["O"] * 30}]
    for too_long in ("cut_start", "cut_end"):
        data = load(tmp_path / too_long, tiny_base, rows, "max_length=8", f"too_long={too_long}")
        assert len(data.train[1].texts[0]) == 8
        assert 3 < len(tagged(data, tiny_base, 1)) < 8
        assert {first.strip() for first, _ in tagged(data, tiny_base, 1)} == {"x"}


def test_first_tokens_of_words() -> None:
    # [BOS] "Lo" "ndon" " is" " big." of "London is big ." where the last two words were written as one token
    tokens = [(0, 0), (0, 2), (2, 6), (6, 9), (10, 14)]
    assert list(first_tokens([(0, 6), (7, 9), (10, 13), (13, 14)], tokens)) == [1, 3, 4, 4]
    assert list(first_tokens([(0, 1), (1, 2)], [(0, 1), (0, 1), (0, 1), (1, 2)])) == [0, 3]  # bytes of a character
    assert list(first_tokens([(0, 0), (0, 1), (1, 2)], [(0, 1)])) == [-1, 0, -1]


def test_a_batch_of_words() -> None:
    rows = [PooledExample(((5, 6, 7),), (1, 0, 2), None, (0, 2, 2)), PooledExample(((8,),), (2,), None, (0,))]
    batch = PooledCollator(0)(rows)
    assert batch["labels"].tolist() == [[1, -100, 0], [2, -100, -100]]
    assert batch["places"].tolist() == [[0, 2, 2], [0, -1, -1]]
    assert batch["tags"].tolist() == [[1, 0, 2], [2, -100, -100]]


SPAN = {"text": "Ada saw Paris"}


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"tokens": ["a", "b"], "tags": ["O"]}], (), "line 1: 2 words in 'tokens' and 1 tags in 'tags'"),
        ([{"tokens": ["a", "b"], "tags": [0, 1]}], (), "'tags' are numbers: say which tags they stand for"),
        ([{"tokens": ["a", 7], "tags": ["O", "O"]}], (), "must be a list of words; it holds a number"),
        ([{"tokens": ["a"], "tags": ["O"]}], (), "all words have the one tag 'O'"),
        ([ADA], ("task.labels=[O, B-PER, I-PER]",), "unknown label 'B-LOC'; known are 'O', 'B-PER'"),
        ([{"tokens": ["a"]}], (), "has none of the columns tags, .*; name yours in task.columns.tags"),
        ([{"x": "a"}], (), "none of the columns tokens, .*; name yours in task.columns.words or data.columns.text"),
        ([{**SPAN, "entities": [[0, 3, "PER"], [2, 5, "PER"]]}], (), "two spans overlap at character 2"),
        ([{**SPAN, "entities": [[0, 30, "PER"]]}], (), "a span from 0 to 30 is none of a text of 13 characters"),
        ([{**SPAN, "entities": [{"start": 0, "end": 3, "label": "PER", "text": "Bob"}]}], (), "is 'Ada' and not 'Bob'"),
        ([{**SPAN, "entities": [{"start": 0, "label": "PER"}]}], (), "a span must have start, end and label"),
        ([{**SPAN, "entities": [[0, 3, "PRE"]]}], ("task.labels=[PER]",), "unknown label 'PRE'; did you mean 'PER'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    tiny_base: Path, tmp_path: Path, rows: list[Any], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, tiny_base, rows, *overrides)


def test_nothing_to_find_among_the_rows_held_back(tiny_base: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"tokens": ["b"], "ner_tags": ["O"]}])
    with pytest.raises(DataError, match="no row to validate on has a span"):
        load(tmp_path, tiny_base, [ADA], f"data.validation={other}")


def test_doubts_are_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {**SPAN, "entities": [[1, 3, "PER"]]}, {"text": "Bob", "entities": None}, {"text": "  ", "entities": []},
        {"text": "Eve ", "entities": [[0, 4, "PER"]]},  # a space at the end is no word
    ]  # fmt: skip
    data = load(tmp_path, tiny_base, rows)
    assert data.dropped == {"'entities' is null": 1, "empty text": 1}
    assert any("warning: 1 spans begin or end within a word" in note for note in data.notes)
