from __future__ import annotations

import pytest

from trainer.errors import ConfigError
from trainer.sweep import split_values, trials_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,5e-4", ["1e-4", "5e-4"]),
        ("lora", ["lora"]),
        ("[q_proj, v_proj],all-linear", ["[q_proj, v_proj]", "all-linear"]),
        ("{type: lora, r: 4},{type: prefix}", ["{type: lora, r: 4}", "{type: prefix}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("it's,that", ["it's", "that"]),
        ("['a,b', c],2", ["['a,b', c]", "2"]),
        ("1,", ["1"]),
        ("", []),
    ],
)
def test_values_are_separated_by_commas_outside_brackets(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_every_combination_is_a_trial_with_a_name_that_is_a_directory() -> None:
    fixed, trials = trials_of(["seed=3", "learning_rate=1e-4,5e-4", "method.r=4,8"])
    assert fixed == ["seed=3"]
    assert [trial.overrides for trial in trials] == [
        ["learning_rate=1e-4", "method.r=4"],
        ["learning_rate=1e-4", "method.r=8"],
        ["learning_rate=5e-4", "method.r=4"],
        ["learning_rate=5e-4", "method.r=8"],
    ]
    assert trials[0].name == "learning_rate-1e-4_r-4"


def test_names_are_safe_and_distinct() -> None:
    _, trials = trials_of(["target_modules=[a/b],[a b],[a b],all-linear", f"system_prompt='{'x' * 300}',y"])
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names) == 6
    assert all("/" not in name and " " not in name and len(name) < 120 for name in names)


def test_a_draw_is_of_the_seed() -> None:
    settings = ["a=1,2,3,4,5", "b=1,2,3,4,5"]
    _, drawn = trials_of(settings, 6, seed=1)
    assert len({trial.name for trial in drawn}) == 6
    assert drawn == trials_of(settings, 6, seed=1)[1] != trials_of(settings, 6, seed=2)[1]
    assert len(trials_of(settings, 99)[1]) == 25


def test_a_sweep_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a setting with several values"):
        trials_of(["learning_rate=1e-4"])


def test_commas_in_prose_separate_nothing_unless_it_is_quoted() -> None:
    prose = {"system_prompt"}.__contains__
    fixed, trials = trials_of(["system_prompt=Be brief, be kind", "r=4,8"], is_prose=prose)
    assert fixed == ["system_prompt=Be brief, be kind"]
    assert len(trials) == 2
    _, trials = trials_of(["system_prompt='Be brief, be kind','Be long'"], is_prose=prose)
    assert [trial.values["system_prompt"] for trial in trials] == ["'Be brief, be kind'", "'Be long'"]
    quoting = ["system_prompt='Yes', he said, 'now'", "prompt_prefix= 1e5, "]
    assert trials_of([*quoting, "r=4,8"], is_prose=lambda key: key != "r")[0] == quoting
