"""Runs of tasks that read: learned, and loaded by transformers and peft to the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file

from tests.factory import make_base
from tests.trainer.every_method import METHODS, WEAK, others_slow
from tests.trainer.pooling.support import (
    class_rows,
    held_back,
    logits_by_peft,
    manifest_of,
    tag_rows,
    token_logits_by_peft,
    vectors_by_peft,
)
from tests.trainer.support import WORDS, losses, make_config
from trainer.config.loading import load_config
from trainer.loop.records import read_metrics
from trainer.loop.session import RunResult
from trainer.run import train

READING = [name for name in METHODS if name != "lora-saved"]


@pytest.mark.parametrize("method", others_slow(READING))
def test_a_classifier_is_what_transformers_and_peft_load(tiny_base: Path, tmp_path: Path, method: str) -> None:
    config = make_config(
        tmp_path, tiny_base, "task=classification", *METHODS[method], "max_steps=30", rows=class_rows()
    )
    result = train(config)
    assert result.package == tmp_path / "run" / "adapter"
    assert result.metrics["accuracy"] > (0.3 if method in WEAK else 0.5)  # by chance a sixth
    pooled = manifest_of(result.package)["pooled"]
    assert pooled["labels"] == sorted(WORDS)
    assert pooled["problem_type"] == "single_label_classification"
    rows = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    logits = logits_by_peft(tiny_base, result.package, [row.texts[0] for row in rows])
    wanted = torch.tensor([row.classes[0] for row in rows])
    assert float(F.cross_entropy(logits, wanted)) == pytest.approx(result.metrics["validation_loss"], abs=2e-5)
    assert float((logits.argmax(-1) == wanted).float().mean()) == pytest.approx(result.metrics["accuracy"])


@pytest.mark.parametrize("method", others_slow(["lora", "freeze", "prefix", "prompt", "ia3", "bottleneck"]))
def test_tags_of_words_are_what_transformers_and_peft_load(tiny_base: Path, tmp_path: Path, method: str) -> None:
    options = ["task=token_classification", *METHODS[method], "max_steps=30"]
    result = train(make_config(tmp_path, tiny_base, *options, rows=tag_rows()))
    assert result.package
    assert result.metrics["span_f1"] > 0.5 > result.metrics["majority_span_f1"]
    assert result.metrics["token_accuracy"] > result.metrics["majority_token_accuracy"] > 0.3
    names = manifest_of(result.package)["pooled"]["labels"]
    assert names == ["O", "B-COLOUR", "B-PER", "I-PER"]
    settings = json.loads((result.package / "adapter_config.json").read_text())
    assert settings["task_type"] == "TOKEN_CLS"
    assert json.loads((result.package / "config.json").read_text())["id2label"] == dict(zip("0123", names, strict=True))
    rows = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    found = token_logits_by_peft(tiny_base, result.package, [row.texts[0] for row in rows])
    logits = torch.cat([one[list(row.places)] for one, row in zip(found, rows, strict=True)])
    wanted = torch.tensor([tag for row in rows for tag in row.classes])
    assert float(F.cross_entropy(logits, wanted)) == pytest.approx(result.metrics["validation_loss"], abs=2e-5)
    right = float((logits.argmax(-1) == wanted).float().mean())
    assert right == pytest.approx(result.metrics["token_accuracy"])


def test_the_head_of_tokens_is_called_as_in_the_base_of_transformers(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", model_type="bloom", n_layer=2, n_head=4)
    options = ["method=lora", "r=4", "target_modules=[query_key_value]", "learning_rate=1e-2", "data.validation=4"]
    result = train(make_config(tmp_path, base, "task=token-classification", *options, rows=tag_rows(16)))
    assert result.package
    saved = load_file(result.package / "adapter_model.safetensors")
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= saved.keys()
    rows = list(held_back(load_config(result.output / "config.yaml", [], {}), base))
    found = token_logits_by_peft(base, result.package, [row.texts[0] for row in rows])
    logits = torch.cat([one[list(row.places)] for one, row in zip(found, rows, strict=True)])
    wanted = torch.tensor([tag for row in rows for tag in row.classes])
    assert float(F.cross_entropy(logits, wanted)) == pytest.approx(result.metrics["validation_loss"], abs=2e-5)


def test_what_each_name_came_to_is_written(tiny_base: Path, tmp_path: Path) -> None:
    options = [*METHODS["lora"], "max_steps=12", "data.validation=16", "task.class_weights=balanced"]
    result = train(make_config(tmp_path, tiny_base, "task=token-classification", *options, rows=tag_rows()))
    report = json.loads((result.output / "labels.json").read_text())
    assert {name: (one["trained"], one["rows"]) for name, one in report["labels"].items()} == {
        "COLOUR": (32, 16),
        "PER": (32, 16),
    }
    hits, said = (sum(one[key] for one in report["labels"].values()) for key in ("right", "said"))
    assert 2 * hits / (said + 32) == pytest.approx(result.metrics["span_f1"])


def test_the_auto_class_of_peft_loads_it(tiny_base: Path, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, tiny_base, "task=classification", *METHODS["lora"], rows=class_rows()))
    assert result.package
    settings = json.loads((result.package / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    (result.package / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tiny_base)})
    )
    model = AutoPeftModelForSequenceClassification.from_pretrained(str(result.package), num_labels=len(WORDS))
    ids = [(260, 270, 280), (261, 262)]
    ours = logits_by_peft(tiny_base, result.package, ids)
    theirs = torch.cat([model(input_ids=torch.tensor([list(one)])).logits for one in ids])
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_any_number_of_labels(tiny_base: Path, tmp_path: Path) -> None:
    words = [sorted({WORDS[i % 6], WORDS[i * i % 6]}) if i % 5 else [] for i in range(48)]
    rows = [{"text": " and ".join(labels) or "nothing", "label": labels} for labels in words]
    config = make_config(tmp_path, tiny_base, "task=classification", *METHODS["lora"], "max_steps=60", rows=rows)
    result = train(config)
    assert result.package
    assert result.metrics["micro_f1"] > 0.8 > result.metrics["majority_micro_f1"]
    assert manifest_of(result.package)["pooled"]["problem_type"] == "multi_label_classification"
    rows_held = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    logits = logits_by_peft(tiny_base, result.package, [row.texts[0] for row in rows_held])
    wanted = torch.zeros_like(logits)
    for i, row in enumerate(rows_held):
        wanted[i, list(row.classes)] = 1
    loss = F.binary_cross_entropy_with_logits(logits, wanted)
    assert float(loss) == pytest.approx(result.metrics["validation_loss"], abs=2e-5)
    right = ((logits > 0) == (wanted > 0)).all(1)
    assert float(right.float().mean()) == pytest.approx(result.metrics["accuracy"])


def test_numbers(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"text": "very " * (i % 4) + WORDS[i % 6], "score": i % 4 / 2} for i in range(48)]
    options = [*METHODS["lora"], "max_steps=60", "learning_rate=5e-3"]
    result = train(make_config(tmp_path, tiny_base, "task=regression", *options, rows=rows))
    assert result.package
    assert result.metrics["spearman"] > 0.7
    assert result.metrics["mse"] == pytest.approx(result.metrics["validation_loss"], abs=1e-5)
    assert result.metrics["mse"] < result.metrics["mean_mse"]
    assert manifest_of(result.package)["pooled"]["problem_type"] == "regression"
    held = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    numbers = logits_by_peft(tiny_base, result.package, [row.texts[0] for row in held])[:, 0]
    wanted = torch.tensor([row.number for row in held])
    assert float((numbers - wanted).square().mean()) == pytest.approx(result.metrics["mse"], abs=1e-5)


@pytest.mark.parametrize("method", others_slow(["lora", "prefix", "ia3", "bottleneck"]))
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_what_peft_loads(tiny_base: Path, tmp_path: Path, method: str, pooling: str) -> None:
    rows = [{"anchor": f"{word} {i}", "positive": f"{i} {word} {word}"} for i, word in enumerate(WORDS * 6)]
    options = [f"task.pooling={pooling}", *METHODS[method], "max_steps=20", "data.validation=12"]
    result = train(make_config(tmp_path, tiny_base, "task=embedding", *options, rows=rows))
    assert result.package
    curve = list(losses(result).values())
    assert sum(curve[-5:]) < sum(curve[:5])
    assert result.metrics["base_mrr"] > 0
    assert manifest_of(result.package)["pooled"]["pooling"] == pooling
    held = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    anchors, positives = (
        vectors_by_peft(tiny_base, result.package, [row.texts[i] for row in held], pooling) for i in (0, 1)
    )
    places = (anchors @ positives.T).argsort(descending=True).argsort()
    found = sum(1 / (int(places[i, i]) + 1) for i in range(len(held))) / len(held)
    assert found == pytest.approx(result.metrics["mrr"], abs=1e-3)


def test_vectors_learn_scores_of_pairs(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {"sentence1": WORDS[i % 6], "sentence2": WORDS[i * 5 % 6], "score": float(i % 6 == i * 5 % 6)}
        for i in range(48)
    ]
    result = train(make_config(tmp_path, tiny_base, "task=embedding", *METHODS["lora"], "max_steps=30", rows=rows))
    assert result.metrics["spearman"] > 0.5
    assert result.metrics["mse"] == pytest.approx(result.metrics["validation_loss"], abs=1e-5)


@pytest.mark.parametrize("task", ["classification", "embedding", "token-classification"])
def test_accumulated_batches_weigh_as_many_rows_as_they_have(tiny_base: Path, tmp_path: Path, task: str) -> None:
    """Ten rows in one batch, or in batches of 4, 4 and 2, are the same step."""
    if task == "classification":
        rows = class_rows(10)
    elif task == "token-classification":
        rows = tag_rows(10)
    else:  # rows with a score: in-batch negatives are those of their batch
        rows = [
            {"text": w, "text_pair": "very " * i + w, "score": str(i % 3 / 2)} for i, w in enumerate(WORDS + WORDS[:4])
        ]
    options = [f"task={task}", *METHODS["dora"], "data.validation=0", "eval_steps=null", "max_steps=3", "optimizer=sgd"]
    whole, parts = (
        train(make_config(tmp_path / name, tiny_base, *options, *sizes, rows=rows))
        for name, sizes in (("a", ["batch_size=10"]), ("b", ["batch_size=4", "gradient_accumulation=3"]))
    )
    assert losses(whole) == pytest.approx(losses(parts), abs=1e-6)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["adalora", "prefix"])
def test_a_resumed_run_is_equal_to_the_last_bit(tiny_base: Path, tmp_path: Path, method: str) -> None:
    config = make_config(tmp_path, tiny_base, "task=classification", *METHODS[method], rows=class_rows())
    whole = train(config)
    expected, tensors = losses(whole), weights(whole)
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    shutil.rmtree(tmp_path / "run" / "adapter")
    resumed = train(config, resume=True)
    assert losses(resumed) == expected
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in weights(resumed).items())


def test_what_each_class_came_to_is_written(tiny_base: Path, tmp_path: Path) -> None:
    options = [*METHODS["lora"], "max_steps=20", "data.validation=16", "task.class_weights=balanced"]
    result = train(make_config(tmp_path, tiny_base, "task=classification", *options, rows=class_rows()))
    report = json.loads((result.output / "labels.json").read_text())
    by_class = report["labels"]
    assert list(by_class) == sorted(WORDS)
    assert sum(one["rows"] for one in by_class.values()) == 16
    assert sum(one["trained"] for one in by_class.values()) == 32
    assert sum(one["right"] for one in by_class.values()) == round(result.metrics["accuracy"] * 16)
    seen = [one["f1"] for one in by_class.values() if one["rows"] or one["said"]]
    assert sum(seen) / len(seen) == pytest.approx(result.metrics["macro_f1"])
    assert sum(pair["rows"] for pair in report["mistaken"]) == 16 - round(result.metrics["accuracy"] * 16)
    assert [
        record["eval_accuracy"] for record in read_metrics(result.output / "metrics.jsonl") if "eval_loss" in record
    ]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.package
    found: dict[str, torch.Tensor] = load_file(result.package / "adapter_model.safetensors")
    return found
