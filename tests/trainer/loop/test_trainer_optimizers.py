"""Optimizers learn and resume exactly; LoRA+, NEFTune and label smoothing against what they are defined to be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import LabelSmoother

from tests.trainer.support import make_config
from trainer.errors import ConfigError
from trainer.loop.loss import token_losses
from trainer.loop.records import read_metrics
from trainer.loop.session import RunResult
from trainer.run import train

RATES = {
    "adamw": 1e-2,
    "adamw_8bit": 1e-2,
    "paged_adamw_8bit": 1e-2,
    "lion": 1e-3,
    "lion_8bit": 1e-3,
    "adafactor": 1e-2,
    "sgd": 1.0,
}


def losses(result: RunResult, key: str = "loss") -> list[float]:
    return [record[key] for record in read_metrics(result.output / "metrics.jsonl") if key in record]


@pytest.mark.parametrize("optimizer", RATES)
def test_every_optimizer_learns_and_resumes_exactly(tiny_base: Path, tmp_path: Path, optimizer: str) -> None:
    options = ["method=lora", "r=32", f"optimizer={optimizer}", f"learning_rate={RATES[optimizer]}", "max_steps=30"]
    config = make_config(tmp_path, tiny_base, *options, "save_steps=15")
    result = train(config)
    curve = losses(result)
    assert sum(curve[20:]) < 0.9 * sum(curve[:10])
    shutil.rmtree(result.output / "checkpoint-30")
    assert losses(train(config, resume=True)) == curve


def step_sizes(result: RunResult, factor: str) -> float:
    saved = load_file(result.output / "checkpoint-1" / "trainable.safetensors")
    return max(float(value.abs().max()) for name, value in saved.items() if factor in name)


def test_with_lora_plus_the_first_step_of_b_is_larger_by_the_ratio(tiny_base: Path, tmp_path: Path) -> None:
    """B starts at zero, and Adam's first step is the learning rate in every element with a gradient."""
    options = ["method=lora", "max_steps=1", "save_steps=1", "eval_steps=1", "learning_rate=1e-4", "weight_decay=0.0"]
    plain = train(make_config(tmp_path / "a", tiny_base, *options))
    plus = train(make_config(tmp_path / "b", tiny_base, *options, "loraplus_lr_ratio=16"))
    assert step_sizes(plain, "lora_B") == pytest.approx(1e-4, rel=1e-3)
    assert step_sizes(plus, "lora_B") == pytest.approx(16e-4, rel=1e-3)
    assert step_sizes(plus, "lora_A") == pytest.approx(step_sizes(plain, "lora_A"), abs=1e-6)


def test_a_run_with_lora_plus_resumes_exactly(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "method=lora", "loraplus_lr_ratio=4", "learning_rate=1e-3")
    curve = losses(train(config))
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    assert losses(train(config, resume=True)) == curve


def test_neftune_is_noise_in_training_alone_and_resumes_exactly(tiny_base: Path, tmp_path: Path) -> None:
    options = ["method=lora", "learning_rate=1e-9", "eval_steps=4"]
    plain = train(make_config(tmp_path / "a", tiny_base, *options))
    noisy_config = make_config(tmp_path / "b", tiny_base, *options, "neftune_noise_alpha=5")
    noisy = train(noisy_config)
    assert losses(noisy) != pytest.approx(losses(plain), rel=1e-3)
    assert losses(noisy, "eval_loss") == pytest.approx(losses(plain, "eval_loss"), rel=1e-5)
    curve = losses(noisy)
    shutil.rmtree(noisy.output / "checkpoint-8")
    assert losses(train(noisy_config, resume=True)) == curve


def test_label_smoothing_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 7, 11), torch.randint(0, 11, (2, 7))
    labels[0, :3] = labels[1, 5:] = -100
    picked = logits[:, :-1][labels[:, 1:] != -100]
    for epsilon in (0.0, 0.1, 0.3):
        smoother = LabelSmoother(epsilon=epsilon)
        expected = smoother({"logits": logits.clone()}, labels.clone(), shift_labels=True)
        torch.testing.assert_close(token_losses(picked, labels, epsilon).mean(), expected)


def test_label_smoothing_is_for_training_and_not_for_validation(tiny_base: Path, tmp_path: Path) -> None:
    options = ["method=lora", "learning_rate=1e-9", "eval_steps=4"]
    plain = train(make_config(tmp_path / "a", tiny_base, *options))
    smooth = train(make_config(tmp_path / "b", tiny_base, *options, "label_smoothing=0.3"))
    assert losses(smooth) != pytest.approx(losses(plain), rel=1e-3)
    assert losses(smooth, "eval_loss") == pytest.approx(losses(plain, "eval_loss"), rel=1e-5)


def test_lora_plus_is_for_lora(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.loraplus_lr_ratio: LoRA\+ is for the method lora"):
        make_config(tmp_path, tiny_base, "method=prefix", "loraplus_lr_ratio=4")
