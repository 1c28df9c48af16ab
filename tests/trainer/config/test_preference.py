"""The preference section of a configuration: what it is filled up with and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.preference.support import preference_config
from trainer.config.loading import dump_config, load_config
from trainer.config.preference import DpoPreference, GrpoPreference


def test_the_short_form_is_filled_up_and_written_back(tmp_path: Path) -> None:
    config = preference_config(tmp_path, tmp_path, "dpo", "loss_type=ipo", "preference.columns.chosen=good", rows=[])
    assert isinstance(config.preference, DpoPreference)
    assert (config.preference.beta, config.preference.loss_type) == (0.1, "ipo")
    assert config.training.learning_rate == pytest.approx(5e-5)  # a tenth of LoRA's
    file = tmp_path / "again.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file, [], {}) == config


def test_a_reward_file_is_found_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "output: out\ndata: {path: d.jsonl}\npreference: {type: grpo, reward: 'mine/r.py:f'}\n", encoding="utf-8"
    )
    preference = load_config(file, [], {}).preference
    assert isinstance(preference, GrpoPreference)
    assert preference.reward == f"{Path.cwd() / 'mine' / 'r.py'}:f"
