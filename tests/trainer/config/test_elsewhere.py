"""What other trainers' names mean beside the rest of a configuration: batches, templates, stages and strategies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from trainer.config.loading import dump_config, load_config
from trainer.config.schema import TrainConfig


def load(*overrides: str, processes: int = 1) -> TrainConfig:
    return load_config(None, ["output=out", "data.path=rows.jsonl", *overrides], {}, processes=processes)


@pytest.mark.parametrize("name", ["per_device_train_batch_size", "train_batch_size", "micro_batch_size"])
def test_batches_of_a_device_are_multiplied_by_the_processes(name: str) -> None:
    assert load(f"{name}=2").training.batch_size == 2
    assert load(f"{name}=2", processes=4).training.batch_size == 8
    assert load("batch_size=2", processes=4).training.batch_size == 2


def test_a_template_of_llama_factory_is_the_bases_own(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("llama3", "qwen", "chatglm3"):
        assert load("stage=sft", f"template={name}").data.template == "chat"
    assert "template llama3: the base's own chat template is used" in caplog.text
    assert load("template=llama3").data.template == "llama3"  # alone it is our own short key
    assert load("stage=sft", "data.template=llama3").data.template == "llama3"
    assert load("stage=sft", "template={{ messages }}").data.template == "{{ messages }}"
    assert load("stage=sft", "template=none").data.template == "none"


@pytest.mark.parametrize(
    ("given", "evaluate", "save"),
    [
        (["eval_strategy=epoch", "save_strategy=epoch"], "epoch", "epoch"),
        (["evaluation_strategy=steps", "eval_steps=5", "save_strategy=steps", "save_steps=10"], 5, 10),
        (["save_strategy=no"], None, "no"),
        (["evals_per_epoch=4", "saves_per_epoch=1"], "epoch/4", "epoch"),
        (["evals_per_epoch=0"], "no", None),
        (["eval_steps=0.1", "save_steps=epoch/2"], 0.1, "epoch/2"),
    ],
)
def test_strategies_say_when_to_evaluate_and_to_save(given: list[str], evaluate: Any, save: Any) -> None:
    training = load(*given).training
    assert (training.eval_steps, training.save_steps) == (evaluate, save)


def test_steps_beside_another_strategy_are_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load("save_strategy=epoch", "save_steps=500").training.save_steps == "epoch"
    assert caplog.records[-1].getMessage() == "save_strategy epoch: training.save_steps is not looked at"


def test_nothing_is_held_back_for_nobody() -> None:
    assert load("eval_strategy=no").data.validation == 0
    assert load("eval_strategy=no", "val_size=0.2").data.validation == 0.2
    assert load("save_strategy=best").training.best_checkpoint is True


def test_the_whole_is_read_back(tmp_path: Path) -> None:
    config = load("evals_per_epoch=2", "save_strategy=no", "stage=pt", "fp16=true", "user_tag=client")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file, (), {}) == config
