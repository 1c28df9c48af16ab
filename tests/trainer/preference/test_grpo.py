"""GRPO on a tiny base: a reward that rises, a served adapter, and what is said about rewards that do not work."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch

from server.engine.messages import AdapterLoaded
from tests.trainer.every_method import METHODS
from tests.trainer.preference.support import preference_config
from tests.trainer.served import serve
from tests.trainer.support import WORDS, losses
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError, TrainerError, TrainingError
from trainer.loop.records import read_metrics
from trainer.preference.grpo import TrlReward, load_reward
from trainer.run import train

REWARDS = Path(__file__).with_name("rewards.py")


def grpo_config(folder: Path, base: Path, *overrides: str, reward: str = f"{REWARDS}:letter_share") -> TrainConfig:
    rows: list[dict[str, Any]] = [{"prompt": WORDS[i % len(WORDS)], "letters": ascii_lowercase} for i in range(24)]
    folder.mkdir(parents=True, exist_ok=True)
    settings = f"preference={{type: grpo, reward: '{reward}', num_generations: 4, max_completion_length: 8}}"
    return preference_config(folder, base, "grpo", settings, "eval_steps=null", "batch_size=8", *overrides, rows=rows)


@pytest.mark.parametrize(("method", "beta"), [("lora", 0.0), ("lora", 0.02), ("bottleneck", 0.0)])
def test_the_reward_rises_and_the_adapter_is_served(tiny_base: Path, tmp_path: Path, method: str, beta: float) -> None:
    options = [*METHODS[method], "max_steps=25", f"preference.beta={beta}"]
    options += ["bias=none"] if beta else []
    result = train(grpo_config(tmp_path, tiny_base, *options))
    assert result.metrics["reward_after"] > result.metrics["reward_before"] + 0.3
    records = [record for record in read_metrics(result.output / "metrics.jsonl") if "reward" in record]
    assert sum(r["reward"] for r in records[-5:]) > sum(r["reward"] for r in records[:5])
    if beta:
        assert records[0]["kl"] == pytest.approx(0, abs=1e-5)
        assert records[-1]["kl"] > 0.01
    assert result.package is not None
    assert isinstance(serve(tiny_base, result.package, "none"), AdapterLoaded)
    assert str(tmp_path) not in (result.package / "hotswap.json").read_text()
    assert '"preference_reward": "letter_share"' in (result.package / "hotswap.json").read_text()


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("rewards.py", "write module:function or file.py:function"),
        ("/nowhere/rewards.py:f", "there is no file /nowhere/rewards.py"),
        (f"{REWARDS}:nothing", "has no function 'nothing'"),
        ("no.such.module:f", "cannot be imported"),
    ],
)
def test_a_reward_that_cannot_be_had_is_named(tiny_base: Path, tmp_path: Path, reward: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(grpo_config(tmp_path, tiny_base, reward=reward))


def test_a_reward_that_answers_wrongly_ends_the_run(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="gave 1 rewards for"):
        train(grpo_config(tmp_path, tiny_base, "max_steps=1", reward=f"{REWARDS}:too_few"))


async def later(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda *_: None, r"returned nothing \(None\); it must return a list of numbers, one for each answer"),
        (lambda *_: 1.0, "returned a float; it must return a list"),
        (lambda *_: {0: 1.0, 1: 1.0}, "returned a dict; it must return a list"),
        (lambda *_: "ab", "returned a str; it must return a list"),
        (later, "returned a coroutine; it must return a list"),
        (lambda *_: [1.0, None], "gave None as a reward; it must be a number"),
        (lambda *_: [1.0, "0.5"], "gave '0.5' as a reward; it must be a number"),
        (lambda *_: torch.ones(2, 2), "as a reward; it must be a number"),
        (lambda *_: [1.0], "gave 1 rewards for 2 answers; give one for each"),
        (lambda *_: [1.0, float("nan")], "a reward that is not finite"),
        (lambda *_: (1 / 0 for _ in "ab"), "raised ZeroDivisionError: division by zero"),
        (lambda _: [1.0, 1.0], "raised TypeError: .* takes 1 positional argument but 2 were given"),
    ],
)
def test_what_is_wrong_with_rewards_is_said(function: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        TrlReward(function).score(["a", "b"], [{}, {}])


def test_rewards_may_be_any_numbers() -> None:
    functions: list[Any] = [lambda *_: (True, 2), lambda *_: torch.tensor([1.0, 2.0]), lambda *_: iter([1, 2.0])]
    for function in functions:
        assert TrlReward(function).score(["a", "b"], [{}, {}]) == [1.0, 2.0]


def test_a_module_is_loaded_by_name() -> None:
    assert load_reward("tests.trainer.preference.rewards:letter_share")(
        ["ee-"], [{"letters": "abcdefghijklmnopqrstuvwxyz"}]
    ) == [2 / 8]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=prefix", "which prefix cannot yet"),
        ("preference.num_generations=3", "does not divide the 8 answers"),
        ("best_checkpoint=true", "grpo has no validation loss"),
    ],
)
def test_what_does_not_go_with_grpo_is_refused(tiny_base: Path, tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grpo_config(tmp_path, tiny_base, override)


def test_a_resumed_run_draws_and_learns_the_same(tiny_base: Path, tmp_path: Path) -> None:
    config = grpo_config(tmp_path, tiny_base, *METHODS["lora"], "gradient_accumulation=2")
    expected = losses(train(config))
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    torch.manual_seed(123)
    assert losses(train(config, resume=True)) == pytest.approx(expected, abs=1e-7)
    assert len(set(expected.values())) > 4
