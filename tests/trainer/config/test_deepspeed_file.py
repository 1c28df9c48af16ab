"""DeepSpeed JSONs: what they say in keys of ours, what contradicts the run is told, and what cannot be read."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from trainer.config.loading import load_config
from trainer.config.schema import TrainingConfig
from trainer.errors import ConfigError

AUTO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto"}},
    "steps_per_print": 1,
}


def training(tmp_path: Path, values: Any, *overrides: str, processes: int = 1) -> TrainingConfig:
    file = tmp_path / "ds.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    given = ["output=out", "data=rows.jsonl", f"deepspeed={file}", *overrides]
    return load_config(None, given, {}, processes=processes).training


@pytest.mark.parametrize(("stage", "strategy"), [(0, "ddp"), (1, "zero1"), (2, "zero2"), (3, "zero3")])
def test_stages_are_strategies(tmp_path: Path, stage: int, strategy: str) -> None:
    read = training(tmp_path, {**AUTO, "zero_optimization": {"stage": stage, "reduce_bucket_size": 5e8}})
    assert read == TrainingConfig(strategy=strategy, learning_rate=read.learning_rate)  # type: ignore[arg-type]


def test_what_is_not_auto_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {
        "train_micro_batch_size_per_gpu": 4,
        "train_batch_size": 32,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-5, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 5e-4}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 20, "total_num_steps": 100}},
    }
    read = training(tmp_path, values, processes=2)
    assert (read.batch_size, read.gradient_accumulation, read.max_grad_norm) == (8, 4, 0.5)
    assert (read.dtype, read.optimizer, read.scheduler, read.warmup) == ("bfloat16", "adamw", "cosine", 20.0)
    assert (read.learning_rate, read.adam_beta2, read.adam_epsilon, read.weight_decay) == (1e-5, 0.95, 1e-7, 5e-4)
    assert not caplog.records


def test_what_the_run_says_itself_holds_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}}
    flags = ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=4", "--strategy=zero1"]
    with caplog.at_level(logging.WARNING):
        read = training(tmp_path, values, *flags)
    assert (read.batch_size, read.gradient_accumulation, read.strategy) == (1, 4, "zero1")
    said = [record.getMessage().partition(" says ")[2] for record in caplog.records]
    assert said == [
        "training.batch_size: 4, but 1 is given and taken",
        "training.strategy: zero2, but zero1 is given and taken",
        "train_batch_size: 32, but a step has training.batch_size 1 times gradient_accumulation 4, which is taken",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "not moved here (offload_param)"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer: Lamb, which is not known here; see training.optimizer"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler: OneCycle, which is not known here; see training.scheduler"),
    ],
)
def test_what_is_not_done_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict[str, Any], words: str
) -> None:
    training(tmp_path, values)
    assert words in caplog.records[0].getMessage()
    training(tmp_path, {"zero_optimization": {"offload_optimizer": {"device": "auto"}}})
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must be one JSON object"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage"),
        ({"zero_optimization": 2}, "zero_optimization in"),
        ({"fp16": True}, "fp16 in"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, values: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        training(tmp_path, values)
    assert words in str(caught.value)
    assert str(caught.value).startswith("deepspeed: ")


def test_a_file_beside_the_configuration_is_found_and_a_switch_alone_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}', encoding="utf-8")
    file = tmp_path / "run.yaml"
    file.write_text("output: out\ndata: rows.jsonl\ndeepspeed: zero.json\n", encoding="utf-8")
    assert load_config(file, (), {}).training.strategy == "zero3"
    assert load_config(file, ["deepspeed=true"], {}).training.strategy == "zero3"
    assert load_config(file, ["deepspeed=true", "deepspeed_config=" + str(tmp_path / "zero.json")], {}) is not None
    assert load_config(file, ["deepspeed=null"], {}).training.strategy == "ddp"
    file.write_text("output: out\ndata: rows.jsonl\ndeepspeed: {zero_optimization: {stage: 1}}\n", encoding="utf-8")
    assert load_config(file, (), {}).training.strategy == "zero1"
