from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainer.config.loading import convert, dump_config, load_config
from trainer.config.methods import LoraMethod, PrefixMethod, PromptMethod
from trainer.errors import ConfigError

SMALLEST = "output: out\ndata: {path: rows.jsonl}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(SMALLEST + "training: {learning_rate: 5e-4, epochs: 2}\n", encoding="utf-8")
    return path


def error_of(file: Path, *overrides: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides, env or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def error_of_text(tmp_path: Path, text: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    return error_of(path)


def test_command_line_over_environment_over_file(file: Path) -> None:
    env = {"HOTSWAP_TRAIN_EPOCHS": "3", "HOTSWAP_TRAIN_TRAINING__BATCH_SIZE": "2", "HOTSWAP_OTHER": "x"}
    training = load_config(file, ["epochs=4"], env).training
    assert (training.learning_rate, training.batch_size, training.epochs) == (5e-4, 2, 4.0)


def test_patterns_may_be_set_by_module(file: Path) -> None:
    method = load_config(file, ["method.rank_pattern.q_proj=2"], {}).method
    assert isinstance(method, LoraMethod)
    assert method.rank_pattern == {"q_proj": 2}


def test_a_method_override_leaves_the_settings_of_the_other_method_behind(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SMALLEST + "method: {type: lora, r: 32}\n", encoding="utf-8")
    assert load_config(path, ["method=prompt", "tokens=3"], {}).method == PromptMethod(tokens=3)
    assert load_config(path, ["method=lora"], {}).method == LoraMethod(r=32)


def test_the_written_configuration_reads_back_to_the_same(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["method=prefix", "projection=false", "validation=0.25", "warmup=3"], {})
    assert isinstance(config.method, PrefixMethod)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy, (), {}) == config


def test_unknown_variables_in_the_environment_are_refused_too(file: Path) -> None:
    assert "unknown key 'epoch'; did you mean 'training.epochs'?" in error_of(file, env={"HOTSWAP_TRAIN_EPOCH": "1"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("output: [\n", "is not valid YAML"),
        ("output: a\noutput: b\n", "line 2: the key 'output' appears twice"),
        ("1: x\n", "line 1: 1 is not a key"),
        ("output: a\n", "the configuration lacks 'data'"),
        ("output: a\ndata: {validation: 0}\n", "data: "),
        (SMALLEST + "method: sft\n", "unknown method 'sft'"),
        (SMALLEST + "trainin: {}\n", "did you mean 'training'?"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_of_text(tmp_path, text)


def test_missing_and_undecodable_files_are_said_so(tmp_path: Path) -> None:
    assert "there is no configuration file" in error_of(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"output: caf\xe9\n")
    assert "cannot be read as UTF-8 text" in error_of(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("written", "key", "expected"),
    [
        ("system_prompt=Answer with #hashtags only", "system_prompt", "Answer with #hashtags only"),
        ("data.system_prompt=Note: be brief", "system_prompt", "Note: be brief"),
        ("system_prompt='quoted: #x'", "system_prompt", "quoted: #x"),
        ("system_prompt=null", "system_prompt", None),
        ("prompt_prefix=Question ", "prompt_prefix", "Question "),
        ("--source_prefix=summarize: ", "prompt_prefix", "summarize: "),
        ("template={{ messages[0]['content'] }}", "template", "{{ messages[0]['content'] }}"),
        ("columns.prompt=2024", "columns.prompt", "2024"),
        ("validation=0.25", "validation", 0.25),
        ("validation=12", "validation", 12),
        ("max_length=64", "max_length", 64),
    ],
)
def test_text_is_taken_as_it_is_written(file: Path, written: str, key: str, expected: object) -> None:
    value: object = load_config(file, [written], {}).data
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected


def test_a_preference_run_does_not_get_a_recipes_added_tokens(file: Path) -> None:
    assert load_config(file, ["data.recipe=sqlqa"], {}).added_tokens == ["[SQL]", "[/SQL]"]
    config = load_config(file, ["data.recipe=sqlqa", "preference=dpo"], {})
    assert config.added_tokens == []
    assert convert(yaml.safe_load(dump_config(config))) == config
