"""Gates as written and as judged, by hand."""

from __future__ import annotations

import pytest

from trainer.data.messages import Question
from trainer.errors import EvaluationError, PublishError
from trainer.evaluation.evaluate import always
from trainer.evaluation.results import Comparison, Difference, Evaluation, Score
from trainer.publishing.gates import Gate, judge, parse_gates


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("slot_f1>=live", Gate("slot_f1", ">=", 0.0, "live")),
        (" slot_f1 > live ", Gate("slot_f1", ">", 0.0, "live")),
        ("slot_f1>=live-0.01", Gate("slot_f1", ">=", -0.01, "live")),
        ("slot_f1 >= live + .02", Gate("slot_f1", ">=", 0.02, "live")),
        ("exact_match>=0.8", Gate("exact_match", ">=", 0.8)),
        ("perplexity<=live+1.5e-1", Gate("perplexity", "<=", 0.15, "live")),
        ("perplexity<12", Gate("perplexity", "<", 12.0)),
        ("accuracy > majority + 0.1", Gate("accuracy", ">", 0.1, "majority")),
    ],
)
def test_what_may_be_written(text: str, gate: Gate) -> None:
    assert parse_gates([text]) == (gate,)
    assert parse_gates([str(gate)]) == (gate,), "it reads as it is written"


def test_several() -> None:
    gates = parse_gates(["slot_f1>=live,exact_match>=0.5", "exact_match>=0.5", "perplexity<=live"])
    assert [str(gate) for gate in gates] == ["slot_f1>=live", "exact_match>=0.5", "perplexity<=live"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "says nothing"),
        ("slot_f1", "is not a gate"),
        ("slot_f1=>live", "is not a gate"),
        ("slot_f1==live", "is not a gate"),
        ("slot_f1>=best", "is not a gate"),
        ("slot_f1>=live-", "is not a gate"),
        ("slot_f1>=80%", "is not a gate"),
        ("exact_match>=80", "goes from 0 to 1"),
        ("slot_f1<=live", "better when higher; write slot_f1>="),
        ("perplexity>=live", "better when lower; write perplexity<="),
        ("perplexity<=1e999", "goes from 0 to inf"),
    ],
)
def test_what_may_not(text: str, message: str) -> None:
    with pytest.raises(PublishError, match=message):
        parse_gates([text])


def test_an_unknown_metric_is_named_with_those_there_are() -> None:
    with pytest.raises(EvaluationError, match=r"unknown metric 'slots'; choose from .*slot_f1"):
        parse_gates(["slots>=live"])


def measured(
    name: str, ours: float, theirs: float, low: float, high: float, *, higher: bool = True
) -> tuple[Evaluation, Comparison]:
    """The candidate's score with an interval of 0.05 to both sides, and the difference's from ``low`` to ``high``."""
    score = Score(name, ours, ours - 0.05, ours + 0.05, 40, higher)
    candidate = Evaluation("a@2", {name: score}, (), 1.0, 1.0, "rows")
    difference = Difference(name, ours, theirs, ours - theirs, low, high, 40, higher)
    return candidate, Comparison("a@2", "a@1", {name: difference})


@pytest.mark.parametrize(
    ("gate", "passed", "confident", "certain"),
    [
        ("slot_f1>=live", True, False, False),  # 0.79 against 0.78, -0.01 to 0.03
        ("slot_f1>live", True, False, False),
        ("slot_f1>=live-0.01", True, True, True),
        ("slot_f1>=live+0.01", True, False, False),  # just so, whatever 0.79 - 0.78 - 0.01 is to a computer
        ("slot_f1>live+0.01", False, False, False),
        ("slot_f1>=live+0.04", False, False, True),
        ("slot_f1>=0.74", True, True, True),
        ("slot_f1>=0.75", True, False, False),
        ("slot_f1>=0.8", False, False, False),
        ("slot_f1>=0.9", False, False, True),
    ],
)
def test_higher_is_better(gate: str, passed: bool, confident: bool, certain: bool) -> None:
    candidate, comparison = measured("slot_f1", 0.79, 0.78, -0.01, 0.03)
    (plain,) = judge(parse_gates([gate]), candidate, {"live": comparison}, confident=False)
    (strict,) = judge(parse_gates([gate]), candidate, {"live": comparison}, confident=True)
    assert (plain.passed, strict.passed, plain.certain) == (passed, confident, certain)


@pytest.mark.parametrize(
    ("gate", "passed", "confident", "certain"),
    [
        ("perplexity<=live", True, True, True),  # 3.0 against 3.5, -0.7 to -0.3
        ("perplexity<=live-0.4", True, False, False),
        ("perplexity<=live-0.6", False, False, False),
        ("perplexity<=live-1", False, False, True),
        ("perplexity<=3.2", True, True, True),
        ("perplexity<3", False, False, False),
    ],
)
def test_lower_is_better(gate: str, passed: bool, confident: bool, certain: bool) -> None:
    candidate, comparison = measured("perplexity", 3.0, 3.5, -0.7, -0.3, higher=False)
    (plain,) = judge(parse_gates([gate]), candidate, {"live": comparison}, confident=False)
    (strict,) = judge(parse_gates([gate]), candidate, {"live": comparison}, confident=True)
    assert (plain.passed, strict.passed, plain.certain) == (passed, confident, certain)


def test_against_the_commonest_class() -> None:
    wanted = ["a"] * 6 + ["b"] * 4
    questions = [Question(None, f"text {i}", label) for i, label in enumerate(wanted)]
    same = always(questions, ["accuracy"], "classification")
    assert same.model == "always a"
    assert same.scores["accuracy"].value == 0.6
    score = Score("accuracy", 0.8, 0.7, 0.9, 10)
    candidate = Evaluation("a@2", {"accuracy": score}, (), 1.0, 1.0, "rows")
    difference = Difference("accuracy", 0.8, 0.6, 0.2, 0.05, 0.35, 10)
    found = {"majority": Comparison("a@2", same.model, {"accuracy": difference})}
    gates = parse_gates(["accuracy>majority+0.1", "accuracy>=majority+0.3"])
    assert [one.passed for one in judge(gates, candidate, found, confident=False)] == [True, False]
    assert [one.passed for one in judge(gates, candidate, found, confident=True)] == [False, False]
    (mean,) = always([Question(None, "a", "1.0"), Question(None, "b", "3.0")], ["mse"], "regression").scores.values()
    assert mean.value == 1.0


def test_equal_answers_are_not_worse() -> None:
    candidate, comparison = measured("slot_f1", 0.5, 0.5, 0.0, 0.0)
    (judgement,) = judge(parse_gates(["slot_f1>=live"]), candidate, {"live": comparison}, confident=True)
    assert (judgement.passed, judgement.certain) == (True, True)
    assert "holds  slot_f1>=live: 0.5000 against live's 0.5000, +0.0000" in str(judgement)
    assert "all rows alike" in str(judgement)


def test_it_says_what_was_measured() -> None:
    candidate, comparison = measured("slot_f1", 0.79, 0.78, -0.01, 0.03)
    (judgement,) = judge(parse_gates(["slot_f1>=live+0.02"]), candidate, {"live": comparison}, confident=False)
    text = "FAILS  slot_f1>=live+0.02: 0.7900 against the bound 0.8000, -0.0100 (95 %: -0.0300 to +0.0100, 40 rows; the"
    assert str(judgement).startswith(text)
    assert judgement.as_dict() == pytest.approx(
        {
            "gate": "slot_f1>=live+0.02", "passed": False, "value": 0.79, "bound": 0.8, "difference": -0.01,
            "low": -0.03, "high": 0.01, "certain": False, "rows": 40,
        }
    )  # fmt: skip
