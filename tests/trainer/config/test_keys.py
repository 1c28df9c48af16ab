"""The keys of a configuration: short and dotted ones, what they may hold, and those that nothing knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.config.test_loading import error_of, file
from trainer.config.keys import (
    check_somewhere_known,
    choices_of,
    full_key,
    infinite_numbers,
    is_prose,
    is_section,
    is_switch,
    takes,
)
from trainer.config.loading import load_config
from trainer.config.methods import LoraMethod
from trainer.errors import ConfigError

__all__ = ["file"]  # a fixture


def test_keys_may_be_dotted_flat_or_written_like_flags(file: Path) -> None:
    config = load_config(file, ["data.max_length=64", "r=4", "--eval-steps=7"], {})
    assert isinstance(config.method, LoraMethod)
    assert (config.data.max_length, config.method.r, config.training.eval_steps) == (64, 4, 7)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rat=1", "did you mean 'training.learning_rate'?"),
        ("data.colums.prompt=x", "did you mean 'data.columns.prompt'?"),
        ("tokens=8", "unknown key 'tokens'; it belongs to the method prefix and prompt and p_tuning"),
        ("loss_type=ipo", "unknown key 'loss_type'; it belongs to training with preference: dpo, kto, grpo"),
        ("pref_loss=ipo", "unknown key 'preference.loss_type'; it belongs to training with preference: dpo, kto"),
        ("preference={type: dpo, loss_type: wild}", "loss_type: Invalid enum value 'wild'; choose from sigmoid, ipo"),
        ("preference={type: kto, loss_type: ipo}", "Invalid enum value 'ipo'; choose from kto, apo_zero_unpaired"),
        ("quantize=4", "training.quantize: Invalid enum value '4'; choose from none, nf4"),
        ("epochs=-1", "training.epochs: Expected float > 0.0"),
        ("epochs=many", "training.epochs: Expected float, got str"),
        ("batch_size=0", "training.batch_size: Expected int >= 1"),
        ("dropout=1", "method.dropout: Expected float < 1.0"),
        ("quantize=nf5", "training.quantize: Invalid enum value 'nf5'; choose from none, nf4, nf4-dq, "),
        ("too_long=keep", "data.too_long: Invalid enum value 'keep'; choose from drop, cut_start, cut_end"),
        ("modules_to_save=lm_head", "method.modules_to_save: write a list, such as [a, b]"),
        ("type=dora", "method.type: unknown method 'dora'; choose from lora, "),
        ("training=3", "training: Expected object, got int"),
        ("validation=1.5", "data.validation: 1.5 is neither a share below 1 nor a whole number of rows"),
        ("warmup=1.5", "training.warmup: 1.5 is neither"),
        ("target_modules=[]", "method.target_modules: name at least one module"),
        ("output=", "output: Expected str, got null"),
        ("noequals", "'noequals' is not key=value"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(file: Path, override: str, words: str) -> None:
    assert words in error_of(file, override)


@pytest.mark.parametrize(
    ("key", "raw", "full"),
    [
        ("epochs", {}, "training.epochs"),
        ("r", {}, "method.r"),
        ("tokens", {"method": {"type": "prefix"}}, "method.tokens"),
        ("beta", {"preference": {"type": "dpo"}}, "preference.beta"),
        ("data.columns.prompt", {}, "data.columns.prompt"),
        ("method.rank_pattern.q_proj", {}, "method.rank_pattern.q_proj"),
    ],
)
def test_a_short_key_means_the_one_that_ends_with_it(key: str, raw: dict[str, Any], full: str) -> None:
    assert full_key(key, raw) == full


def test_a_short_key_of_two_is_to_be_written_out() -> None:
    with pytest.raises(ConfigError, match=r"'label_smoothing' could mean .* or .*; write it out"):
        full_key("label_smoothing", {"preference": {"type": "dpo"}})
    assert full_key("label_smoothing", {}) == "training.label_smoothing"


def test_what_a_key_may_hold() -> None:
    assert choices_of("data.too_long") == ["drop", "cut_start", "cut_end", "split"]
    assert choices_of("training.epochs") == []
    assert (takes("epochs", int), takes("epochs", float), takes("epochs", str)) == (True, True, False)
    assert (is_switch("packing"), is_switch("epochs"), is_switch("nothing")) == (True, False, False)
    assert (is_section("data.columns"), is_section("method"), is_section("data.path")) == (True, True, False)
    assert (is_prose("data.system_prompt"), is_prose("data.path")) == (True, False)


def test_numbers_must_be_finite() -> None:
    assert list(infinite_numbers({"training": {"epochs": 3.0}})) == []
    numbers = {"training": {"epochs": float("inf")}, "data": {"validation": float("nan")}}
    assert list(infinite_numbers(numbers)) == [
        "training.epochs: inf is not a finite number",
        "data.validation: nan is not a finite number",
    ]


def test_a_key_is_known_if_any_method_or_preference_has_it() -> None:
    for key in ("tokens", "desirable_weight", "method.rank_pattern.q_proj", "epochs"):
        check_somewhere_known(key)
    with pytest.raises(ConfigError, match=r"unknown key 'epoch'; did you mean 'training\.epochs'"):
        check_somewhere_known("epoch")
