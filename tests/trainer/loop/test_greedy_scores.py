"""Answers at each evaluation: their scores in the metrics, by the code that scores served answers."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import colour_rows, losses, make_config
from trainer.base_model import load_base
from trainer.data.messages import TokenQuestion
from trainer.errors import ConfigError
from trainer.evaluation.metrics import find_metrics
from trainer.evaluation.scoring import score_texts
from trainer.loop.greedy import ScoredAnswers, texts_of
from trainer.loop.loss import LabelledHead
from trainer.loop.records import read_metrics
from trainer.progress import SilentDisplay
from trainer.run import train

NAMES = ["bleu4", "rouge1", "rouge2", "rougeL"]


class Heard(SilentDisplay):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_validation_rows_are_answered_at_each_evaluation_and_scored(tiny_base: Path, tmp_path: Path) -> None:
    learns = ["max_steps=50", "learning_rate=1e-2", "eval_steps=25", "save_steps=50", "validation=16"]
    generates = ["generate_rows=12", "generate_metrics=[bleu4, rouge1, rouge2, rougeL, exact_match]"]
    display = Heard()
    result = train(make_config(tmp_path, tiny_base, *learns, *generates, "exact_match_rows=12"), display=display)
    exact, bleu, rouge = (losses(result, f"eval_{name}") for name in ("exact_match", "bleu4", "rougeL"))
    assert list(exact) == list(bleu) == list(rouge) == [25, 50]
    assert result.metrics["exact_match"] == exact[50] > 0
    assert 100 * exact[50] <= rouge[50] <= 100
    assert [result.metrics[name] for name in NAMES] == [losses(result, f"eval_{name}")[50] for name in NAMES]
    said = f"validation loss {losses(result, 'eval_loss')[50]:.4f}  bleu4 {bleu[50]:.4g}  rouge1 "
    assert any(said in line for line in display.lines)


def test_answers_change_nothing_of_what_is_trained(tiny_base: Path, tmp_path: Path) -> None:
    options = ["dropout=0.3", "eval_steps=2", "best_checkpoint=true", "save_steps=2"]
    with_answers = train(make_config(tmp_path / "a", tiny_base, *options, "generate_rows=3"))
    without = train(make_config(tmp_path / "b", tiny_base, *options))
    assert losses(with_answers) == losses(without)
    records = [r for r in read_metrics(with_answers.output / "metrics.jsonl") if "eval_loss" in r]
    assert all(f"eval_{name}" in record for name in NAMES for record in records)
    best = min(records, key=lambda record: record["eval_loss"])
    assert with_answers.metrics["rouge1"] == best["eval_rouge1"]


def test_scores_are_those_of_the_answers_and_their_length_is_bounded(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(make_config(tmp_path, tiny_base))
    head = LabelledHead(base.model)
    questions = [TokenQuestion((5, 6, 7), "x"), TokenQuestion((8,), "longer")]
    heard: list[Any] = []

    def score(answers: Any, wanted: Any) -> dict[str, float]:
        heard.append((answers, wanted))
        return score_texts(find_metrics(["exact_match"]), answers, wanted)

    assert ScoredAnswers(base, questions, score, max_tokens=3).of(base.model, head) == {"exact_match": 0.0}
    answers = texts_of(base.model, head, base, questions, lambda longest: 3)
    assert heard == [(answers, ["x", "longer"])]
    limits: list[int] = []
    texts_of(base.model, head, base, questions, lambda longest: limits.append(longest) or 1)  # type: ignore[func-returns-value]
    assert limits == [len("longer")]
    right = [TokenQuestion(question.input_ids, answer) for question, answer in zip(questions, answers, strict=True)]
    assert ScoredAnswers(base, right, score, max_tokens=3).of(base.model, head) == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["generate_metrics=[bleu]"], "training.generate_metrics: unknown metric 'bleu'; choose from exact_match"),
        (["generate_metrics=[perplexity]"], "training.generate_metrics: perplexity is of responses, not of answers"),
        (["generate_metrics=[sql_execution]"], "training.generate_metrics: sql_execution needs the SQLite file"),
        (["validation=0", "eval_steps=null"], "training.generate_rows: there are no validation rows"),
        (["preference=dpo"], "training.generate_rows: dpo has no responses to match; leave it out"),
    ],
)
def test_what_cannot_be_scored_is_said_before_training(
    tiny_base: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(make_config(tmp_path, tiny_base, "generate_rows=4", *options))
    assert str(caught.value).startswith(words)
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named_before_training(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ImportError(name=name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"bleu4 needs the package sacrebleu.*; install hotswap with the extra"):
        train(make_config(tmp_path, tiny_base, "generate_rows=4"))


def test_plain_text_has_nothing_to_answer(tiny_base: Path, tmp_path: Path) -> None:
    display = Heard()
    rows = [{"text": row["prompt"]} for row in colour_rows(16)]
    train(make_config(tmp_path, tiny_base, "generate_rows=4", "max_steps=1", rows=rows), display=display)
    assert "training.generate_rows: the rows are plain text, in which nothing is answered" in display.lines
