"""Runs that leave the finite numbers end there, and what they had saved stays as good as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.preference.support import judged_rows, pair_rows, preference_config
from tests.trainer.support import make_config
from trainer.config.schema import TrainConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.loop.callbacks import StopCallback
from trainer.loop.checkpoint import checkpoints
from trainer.loop.finite import NotFiniteError, StepWatch
from trainer.loop.loss import row_losses
from trainer.loop.trainer import AdapterTrainer
from trainer.run import train

WILD = ["learning_rate=1e30", "scheduler=constant", "log_steps=20", "eval_steps=6", "save_steps=1", "max_steps=6"]


def records(config: TrainConfig) -> list[dict[str, Any]]:
    """The metrics, read as JSON that is nothing but JSON."""

    def refuse(text: str) -> Any:
        raise AssertionError(text)

    lines = (Path(config.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def stopped(config: TrainConfig) -> str:
    """What a run says that ends so. All that it keeps is finite."""
    with pytest.raises(NotFiniteError) as caught:
        train(config)
    for checkpoint in checkpoints(Path(config.output)):
        assert all(bool(t.isfinite().all()) for t in load_file(checkpoint / "trainable.safetensors").values())
    assert not (Path(config.output) / "adapter").exists()
    return str(caught.value)


def steps_of(config: TrainConfig) -> list[str]:
    return [path.name for path in checkpoints(Path(config.output))]


@pytest.mark.parametrize("kind", ["plain", "packed", "adalora", "dpo", "kto", "reward"])
def test_the_first_loss_that_is_none_ends_the_run_between_logs(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    more = {"packed": ["packing=true", "max_length=64"], "adalora": ["method=adalora", "init_r=6", "target_r=3"]}
    if kind in ("dpo", "kto", "reward"):
        rows: list[Any] = judged_rows(24) if kind == "kto" else pair_rows(24)
        config = preference_config(tmp_path, tiny_base, kind, *WILD, "keep_checkpoints=1", rows=rows)
    else:
        config = make_config(tmp_path, tiny_base, *WILD, "keep_checkpoints=1", *more.get(kind, []))
    message = stopped(config)
    assert message == (
        "the loss became nan at step 2, and the run was stopped; lower training.learning_rate (now 1e+30) or set "
        f"training.warmup; {config.output}/checkpoint-1 is the last good one, which start_from can begin another run "
        "with"
    )
    assert steps_of(config) == ["checkpoint-1"]
    assert records(config) == [{"step": 2, "loss": None, "grad_norm": None}]


def test_what_a_model_without_numbers_cannot_sample_is_said_in_plain_words(tiny_base: Path, tmp_path: Path) -> None:
    reward = tmp_path / "rewards.py"
    reward.write_text("def odd(answers, rows):\n    return [sum(map(ord, text)) % 7 for text in answers]\n")
    grpo = [f"preference.reward={reward}:odd", "num_generations=2", "max_completion_length=4", "eval_steps=null"]
    config = preference_config(tmp_path, tiny_base, "grpo", *WILD, *grpo, rows=[{"prompt": "p"}] * 12)
    assert stopped(config).startswith("the model's numbers are no longer finite at step 2, and the run was stopped; ")
    assert steps_of(config) == ["checkpoint-1"]


def test_a_loss_that_is_none_before_anything_was_learned_is_not_blamed_on_the_rate(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loop.trainer.token_losses", lambda logits, *_: logits.sum(-1) * math.inf)
    message = stopped(make_config(tmp_path, tiny_base))
    assert "at step 1, and the run was stopped; nothing had been learned yet: look at the base's weights" in message


def test_a_gradient_without_a_norm_ends_the_run_though_its_loss_has_a_value(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = AdapterTrainer.compute_loss

    def steep(trainer: AdapterTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute_loss(trainer, *args, **kwargs)
        if trainer.state.global_step == 2:
            loss.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
        return loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", steep)
    config = make_config(tmp_path, tiny_base, "save_steps=1", "log_steps=20", "gradient_accumulation=2")
    assert stopped(config).startswith("the norm of the gradient became ")
    assert steps_of(config) == ["checkpoint-1", "checkpoint-2"]
    last = records(config)[-1]
    assert math.isfinite(last["loss"])
    assert (last["step"], last["grad_norm"]) == (3, None)


@pytest.mark.parametrize("due", [{"save_steps": 4}, {"save_steps": 8}], ids=["at a checkpoint", "at the end"])
def test_a_weight_that_is_none_is_not_saved(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, due: dict[str, int]
) -> None:
    at = 4 if due["save_steps"] == 4 else 8

    def spoil(_self: Any, _args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        if state.global_step == at:
            next(p for p in model.parameters() if p.requires_grad).data[0] = math.nan

    monkeypatch.setattr(StopCallback, "on_step_end", spoil)
    config = make_config(tmp_path, tiny_base, f"save_steps={due['save_steps']}", "data.validation=0", "eval_steps=null")
    assert stopped(config).startswith(f"a trained weight is no longer finite at step {at}, and the run was stopped; ")
    assert steps_of(config) == []


@pytest.mark.parametrize("options", [[], ["best_checkpoint=true", "keep_checkpoints=1"], ["early_stopping=1"]], ids=str)
def test_a_validation_loss_that_is_none_ends_the_run_before_its_checkpoint(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    evaluated = []

    def broken(logits: Any, labels: Any) -> Any:
        sums, counts = row_losses(logits, labels)
        evaluated.append(labels)
        return (sums if len(evaluated) <= 2 else sums * math.inf), counts  # two batches an evaluation

    monkeypatch.setattr("trainer.loop.trainer.row_losses", broken)
    config = make_config(tmp_path, tiny_base, "save_steps=2", "eval_steps=2", "log_steps=20", *options)
    assert stopped(config).startswith("the validation loss became inf at step 4, and the run was stopped; ")
    assert steps_of(config) == ["checkpoint-2"]
    assert [record["eval_loss"] for record in records(config) if "eval_loss" in record][1:] == [None]


def test_a_run_does_not_go_on_from_weights_that_are_none(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "max_steps=2", "save_steps=2", "eval_steps=2")
    train(config)
    checkpoint = checkpoints(Path(config.output))[-1]
    file = checkpoint / "trainable.safetensors"
    save_file({name: tensor * math.nan for name, tensor in load_file(file).items()}, file)
    words = f"{checkpoint} holds weights that are not finite; remove it, and an earlier one is used"
    with pytest.raises(CheckpointError) as caught:
        train(config, resume=True)
    assert str(caught.value) == words
    with pytest.raises(ConfigError) as refused:
        train(make_config(tmp_path / "other", tiny_base, f"start_from={checkpoint}"))
    assert str(refused.value) == f"start_from: {words}"


def test_numbers_are_told_of_the_first_step_that_has_one_amiss() -> None:
    watch = StepWatch()
    for step, losses, norm in ((1, (1.0, 2.0), 3.0), (2, (1.0, math.inf), 3.0), (3, (math.nan,), math.nan)):
        for loss in losses:
            watch.add(torch.tensor(loss))
        watch.end_step(step, torch.tensor(norm) if step == 2 else norm)
    first = watch.first_not_finite(wait=False)
    assert first is not None
    assert (first.step, first.loss, first.grad_norm) == (2, math.inf, 3.0)


@pytest.mark.gpu
def test_the_numbers_of_a_gpu_arrive_without_being_waited_for() -> None:
    watch = StepWatch()
    busy = torch.ones(8192, 8192, device="cuda")
    for step, loss in ((1, 1.0), (2, math.nan)):
        for _ in range(20):
            busy = busy @ busy / 8192
        watch.add(busy[0, 0] * loss)
        watch.end_step(step, busy[0, 0])
    assert watch.first_not_finite(wait=False) is None
    first = watch.first_not_finite(wait=True)
    assert first is not None
    assert first.step == 2
