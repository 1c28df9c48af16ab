"""Adapters that read, trained, published through gates and asked over HTTP: the same numbers as peft's."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.server.live import Live
from tests.trainer.every_method import METHODS
from tests.trainer.pooling.support import class_rows, held_back, logits_by_peft, tag_rows, vectors_by_peft
from tests.trainer.publishing.conftest import INFERENCE
from tests.trainer.support import WORDS, make_config
from trainer.config.loading import load_config
from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.rows import RowSource, load_rows
from trainer.loop.session import RunResult
from trainer.publishing.gate_report import GateOutcome, GateReport
from trainer.publishing.gated_publish import Feedback, GateOptions, publish_gated
from trainer.publishing.gates import parse_gates
from trainer.run import train
from trainer.serving.client import AdminClient, Endpoint


def published(admin: AdminClient, result: RunResult, name: str, *gates: str) -> GateReport:
    assert result.package
    rows = load_rows(RowSource(config=result.output / "config.yaml"))
    options = GateOptions(parse_gates(gates), metrics=rows.metrics, api_key=INFERENCE)
    feedback = Feedback(lambda _text: None, lambda _model: nullcontext(lambda _done, _all: None))
    return publish_gated(result.package, admin, name, rows, options=options, feedback=feedback)


def served_accuracy(report: GateReport, metric: str) -> float:
    assert report.candidate_scores
    return report.candidate_scores.scores[metric].value


@pytest.mark.parametrize("method", ["lora", pytest.param("prefix", marks=pytest.mark.slow)])
def test_a_classifier_goes_live_and_answers_as_in_peft(
    server: Live, admin: AdminClient, tiny_base: Path, tmp_path: Path, method: str
) -> None:
    options = [*METHODS[method], "max_steps=30"]
    result = train(make_config(tmp_path, tiny_base, "task=classification", *options, rows=class_rows()))
    assert result.package
    report = published(admin, result, "colours", "accuracy>live", "accuracy>majority+0.1", "macro_f1>=0.3")
    assert report.outcome is GateOutcome.PUBLISHED
    assert served_accuracy(report, "accuracy") == pytest.approx(result.metrics["accuracy"])
    assert report.live_scores
    assert report.live_scores.model.startswith("always ")
    texts = ["very red", "blue", "very very grey"]
    with server.http(authorization=f"Bearer {INFERENCE}") as http:
        answer = http.post("/v1/classify", json={"model": "colours", "input": texts})
    assert answer.status_code == 200, answer.text
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    shares = logits_by_peft(tiny_base, result.package, [tuple(tokenizer(text).input_ids) for text in texts]).softmax(-1)
    for found, wanted in zip(answer.json()["data"], shares, strict=True):
        assert found["label"] == sorted(WORDS)[int(wanted.argmax())]
        assert torch.allclose(torch.tensor(found["probs"]), wanted, atol=1e-4)
    worse = train(make_config(tmp_path / "worse", tiny_base, "task=classification", *METHODS[method], "max_steps=1",
                              "learning_rate=1e-6", rows=class_rows()))  # fmt: skip
    assert published(admin, worse, "colours", "accuracy>=live").outcome is GateOutcome.REFUSED


def test_numbers_are_scored_as_in_training(server: Live, admin: AdminClient, tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"text": "very " * (i % 4) + WORDS[i % 6], "score": i % 4 / 2} for i in range(48)]
    options = [*METHODS["lora"], "max_steps=20", "learning_rate=5e-3"]
    result = train(make_config(tmp_path / "a", tiny_base, "task=regression", *options, rows=rows))
    report = published(admin, result, "numbers", "spearman>=0.1", "mse<=live")
    assert served_accuracy(report, "mse") == pytest.approx(result.metrics["mse"], abs=1e-4)


def test_several_classes_are_scored_as_in_training(
    server: Live, admin: AdminClient, tiny_base: Path, tmp_path: Path
) -> None:
    options = [*METHODS["lora"], "max_steps=20", "learning_rate=5e-3"]
    words = [sorted({WORDS[i % 6], WORDS[i * i % 6]}) for i in range(48)]
    many = [{"text": " and ".join(labels), "label": labels} for labels in words]
    result = train(make_config(tmp_path / "b", tiny_base, "task=classification", *options, rows=many))
    report = published(admin, result, "several", "micro_f1>=0.1")
    for metric in ("accuracy", "macro_f1", "micro_f1"):
        assert served_accuracy(report, metric) == pytest.approx(result.metrics[metric])


def test_tags_of_words_are_scored_as_in_training(
    server: Live, admin: AdminClient, tiny_base: Path, tmp_path: Path
) -> None:
    options = ["task=token-classification", *METHODS["lora"], "max_steps=12"]
    result = train(make_config(tmp_path, tiny_base, *options, rows=tag_rows()))
    report = published(admin, result, "names", "span_f1>live", "span_f1>=0.3", "token_accuracy>majority")
    assert report.outcome is GateOutcome.PUBLISHED
    for metric in ("span_f1", "span_precision", "span_recall", "token_accuracy"):
        assert served_accuracy(report, metric) == pytest.approx(result.metrics[metric])
    assert report.live_scores
    assert report.live_scores.scores["span_f1"].value == 0
    questions = [Question(None, "red", "red")]
    with pytest.raises(EvaluationError, match=r"names tells of every token, .*; set task=token-classification"):
        evaluate(Endpoint(server.url, "names", INFERENCE), questions, ["accuracy"], reads="classification")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_pairs_of_texts_are_scored_as_in_training(
    server: Live, admin: AdminClient, tiny_base: Path, tmp_path: Path, task: str
) -> None:
    rows = [{"text": WORDS[i % 6], "text_pair": WORDS[i * 5 % 6], "label": int(i % 6 == i * 5 % 6)} for i in range(48)]
    result = train(make_config(tmp_path, tiny_base, f"task={task}", *METHODS["lora"], "max_steps=12", rows=rows))
    metric = "accuracy" if task == "classification" else "mse"
    report = published(admin, result, f"pairs-{task}", "accuracy>=0.1" if task == "classification" else "mse<=1")
    assert report.outcome is GateOutcome.PUBLISHED
    assert served_accuracy(report, metric) == pytest.approx(result.metrics[metric], abs=1e-4)


def test_vectors_are_served_as_they_were_trained(
    server: Live, admin: AdminClient, tiny_base: Path, tmp_path: Path
) -> None:
    rows = [{"anchor": f"{word} {i}", "positive": f"{i} {word} {word}"} for i, word in enumerate(WORDS * 6)]
    options = ["task.pooling=last", *METHODS["lora"], "max_steps=10", "data.validation=12"]
    result = train(make_config(tmp_path, tiny_base, "task=embedding", *options, rows=rows))
    assert result.package
    report = published(admin, result, "near", "mrr>=0.1")
    assert served_accuracy(report, "mrr") == pytest.approx(result.metrics["mrr"], abs=1e-3)
    assert report.live_scores
    assert report.live_scores.scores["mrr"].value > 0
    held = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    ids = [row.texts[0] for row in held[:3]]
    with server.http(authorization=f"Bearer {INFERENCE}") as http:
        data = http.post("/v1/embeddings", json={"model": "near", "input": [list(one) for one in ids]}).json()["data"]
    wanted = vectors_by_peft(tiny_base, result.package, ids, "last")
    assert torch.allclose(torch.tensor([one["embedding"] for one in data]), wanted, atol=1e-4)
