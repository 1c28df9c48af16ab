"""Metrics of tags, against figures worked out by hand."""

from __future__ import annotations

import json

import pytest

from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.evaluate import always
from trainer.evaluation.metrics import METRICS, find_metrics
from trainer.evaluation.metrics.reading import reading_metrics
from trainer.evaluation.scoring import score_texts

WANTED = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"], ["B-LOC", "I-LOC"]]
SAID = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC"], ["B-LOC", "O"]]


def scores(task: str, said: list[list[str]], wanted: list[list[str]]) -> dict[str, float]:
    return score_texts(find_metrics(reading_metrics(task)), [*map(json.dumps, said)], [*map(json.dumps, wanted)])


def test_spans_count_whole_and_of_their_kind() -> None:
    found = scores("token-classification", SAID, WANTED)
    # said: PER(0,2) right, PER(3,4) of the wrong kind, LOC(1,2) where nothing is, LOC(0,1) too short; wanted: three
    assert found["span_precision"] == pytest.approx(1 / 4)
    assert found["span_recall"] == pytest.approx(1 / 3)
    assert found["span_f1"] == pytest.approx(2 / 7)
    assert found["token_accuracy"] == pytest.approx(5 / 8)


def test_a_missing_answer_is_wrong() -> None:
    assert scores("token-classification", [[], ["O"], WANTED[2]], WANTED)["token_accuracy"] == pytest.approx(3 / 8)


def test_tags_without_spans_have_an_accuracy() -> None:
    assert scores("tagging", [["DET", "NOUN"]], [["DET", "VERB"]]) == {"token_accuracy": 0.5}
    with pytest.raises(EvaluationError, match="span_f1 cannot be computed on any row: no reference has spans"):
        score_texts([METRICS["span_f1"]], ['["O"]'], ['["O"]'])


def test_the_commonest_tag_of_all_words_is_the_majority() -> None:
    questions = [Question(None, "a b", json.dumps(tags), words=((0, 1),) * len(tags)) for tags in WANTED]
    found = always(questions, reading_metrics("token-classification"), "token-classification")
    assert found.model == "always O"
    assert found.scores["token_accuracy"].value == pytest.approx(3 / 8)
    assert found.scores["span_f1"].value == 0
