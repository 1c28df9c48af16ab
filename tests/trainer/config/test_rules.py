"""Values of a configuration that do not go together, supervised and of preferences."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.config.test_loading import error_of, file
from tests.trainer.preference.support import pair_rows, preference_config
from trainer.errors import ConfigError

__all__ = ["file"]  # a fixture


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["method=freeze", "quantize=nf4"], "training.quantize"),
        (["method=ia3", "method.target_modules=[q_proj]"], "method.feedforward_modules"),
        (["template=none", "messages=messages"], "data.columns.messages"),
        (["template=none", "system_prompt=Be brief"], "data.template"),
        (["data.columns.system=s", "system_prompt=Be brief"], "data.system_prompt"),
        (["validation=0", "best_checkpoint=true"], "training.best_checkpoint"),
        (["validation=0", "exact_match_rows=3"], "training.exact_match_rows"),
        (["best_checkpoint=true", "eval_steps=10", "save_steps=15"], "training.save_steps"),
        (["early_stopping=2", "eval_steps=10", "save_steps=15"], "training.save_steps"),
        (["early_stopping=2", "save_steps=15"], "training.save_steps"),
        (["epochs=.inf"], "training.epochs"),
        (["data.roles.student=usr"], "data.roles.student"),
        (["method.type=[lora, prefix]"], "method.type"),
    ],
)
def test_values_that_do_not_go_together_are_refused(file: Path, overrides: list[str], key: str) -> None:
    assert error_of(file, *overrides).startswith(f"{key}: ")


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
        ("dpo", "data.columns.response=a", r"data\.columns\.response: dpo does not read it; .*columns.chosen and rej"),
        ("kto", "data.columns.text=a", r"its answers are in preference\.columns\.completion and label"),
        ("dpo", "preference.columns.label=a", r"preference\.columns\.label: dpo does not read it"),
        ("reward", "preference.columns.completion=a", r"preference\.columns\.completion: reward does not read it"),
        ("kto", "data.shape=text", r"data\.shape: kto has prompts and answers"),
    ],
)
def test_what_does_not_go_together_is_said_with_its_key(tmp_path: Path, kind: str, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preference_config(tmp_path, tmp_path, kind, override, rows=pair_rows(2))


def test_a_prompt_stands_in_one_column(tmp_path: Path) -> None:
    for other in ("prompt", "input"):
        columns = ("data.columns.messages=m", f"data.columns.{other}=p")
        with pytest.raises(ConfigError, match=f"data.columns: {other} and messages do not go together"):
            preference_config(tmp_path, tmp_path, "dpo", *columns, rows=pair_rows(2))
