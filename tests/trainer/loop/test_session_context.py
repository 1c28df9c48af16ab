"""Rows that do not fit the positions of a base: one line before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.factory import make_base
from tests.trainer.preference.support import pair_rows, preference_config
from tests.trainer.support import colour_rows, make_config
from trainer.config.loading import load_config
from trainer.errors import ConfigError
from trainer.run import train


@pytest.fixture(scope="module")
def short_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("short") / "base", max_position_embeddings=64)


def test_rows_longer_than_the_base_are_refused(short_base: Path, tmp_path: Path) -> None:
    rows = [*colour_rows(20), {"prompt": "x" * 60, "response": "y"}]
    with pytest.raises(
        ConfigError, match=r"the longest row has \d+ tokens, and the base has 64 positions; set data.max_length to 64"
    ):
        train(make_config(tmp_path, short_base, rows=rows))
    assert not (tmp_path / "run").exists()
    assert train(make_config(tmp_path, short_base, "data.max_length=64", "max_steps=2", rows=rows)).package


def test_virtual_tokens_take_positions(short_base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"beside the method's 40 virtual tokens, .* set data.max_length to 24 at most"
    ):
        train(make_config(tmp_path, short_base, "method=prompt", "method.tokens=40"))


def test_preferences_too(short_base: Path, tmp_path: Path) -> None:
    rows = [{**row, "chosen": row["chosen"] * 40} for row in pair_rows(12)]
    with pytest.raises(ConfigError, match="the base has 64 positions"):
        train(preference_config(tmp_path, short_base, "dpo", rows=rows))


def test_what_grpo_writes_takes_positions(short_base: Path, tmp_path: Path) -> None:
    options = (
        "preference.reward=tests/trainer/preference/rewards.py:letter_share",
        "eval_steps=null",
        "num_generations=4",
    )
    config = preference_config(
        tmp_path, short_base, "grpo", *options, "max_completion_length=40", rows=[{"prompt": "long " * 5}] * 12
    )
    with pytest.raises(ConfigError, match=r"and 40 of preference.max_completion_length behind them, .* to 24 at most"):
        train(config)


@pytest.mark.parametrize(("method", "room"), [("lora", 64), ("prompt", 48)])
def test_texts_are_split_where_the_base_ends(short_base: Path, tmp_path: Path, method: str, room: int) -> None:
    rows = [{"text": "x" * 150}] * 10
    config = make_config(tmp_path, short_base, "stage=pt", f"method={method}", "max_steps=1", "batch_size=2", rows=rows)
    assert config.data.max_length == 1024
    run = train(config)
    assert load_config(run.output / "config.yaml", (), {}).data.max_length == room
    record = json.loads((run.output / "run.json").read_text(encoding="utf-8"))
    assert record["data"]["train_rows"] == 2 * -(-151 // room)  # the token that ends a text is one more
    assert train(config, resume=True).steps == 1
