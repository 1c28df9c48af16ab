"""The preference section of a configuration: what it is filled up with and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.preference.support import pair_rows, preference_config
from trainer.config.loading import dump_config, load_config
from trainer.config.preference import DpoPreference, GrpoPreference
from trainer.errors import ConfigError
from trainer.preference.run import require_trl


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


@pytest.mark.parametrize(
    ("kind", "override", "words"),
    [
        ("orpo", "seed=1", r"preference\.type: unknown kind 'orpo'; choose from dpo, kto, reward, grpo"),
        ("dpo", "preference.bta=1", "did you mean 'preference.beta'"),
        ("dpo", "desirable_weight=2", "unknown key 'desirable_weight'"),
        ("dpo", "preference.label_smoothing=0.1", "only for the losses robust"),
        ("dpo", "loss_type=exo_pair", "needs one above 0"),
        ("dpo", "dropout=0.1", r"set it to 0, or preference\.disable_dropout to false"),
        ("dpo", "exact_match_rows=3", "dpo has no responses to match"),
        ("dpo", "added_tokens=[a]", "the reference of dpo is the base"),
        ("dpo", "too_long=split", "choose drop, cut_start or cut_end"),
        ("dpo", "neftune_noise_alpha=5", "would blur what dpo compares"),
        ("dpo", "method=adalora", "adalora adds a term"),
        ("kto", "batch_size=1", "give at least 2"),
        ("reward", "method=ia3", "trained with lora"),
    ],
)
def test_what_does_not_go_together_is_said_with_its_key(tmp_path: Path, kind: str, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preference_config(tmp_path, tmp_path, kind, override, rows=pair_rows(2))


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"kto needs trl, which is an extra: pip install 'hotswap\[preference\]'"):
        require_trl("kto")


def test_supervised_training_imports_no_trl() -> None:
    code = "import sys, trainer.run, trainer.preference.task; sys.exit('trl' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
