from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.trainer.config.test_yaml_text import TEXTS
from trainer.config.loading import convert, dump_config, given_values, load_config, load_run
from trainer.config.methods import METHODS, LoraMethod, PrefixMethod, PromptMethod
from trainer.config.preference import PREFERENCES
from trainer.config.schema import StartConfig, TrainConfig
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
        ("output: a\ndata: {validation: 0}\n", "the configuration lacks 'data.path'"),
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
        ("system_prompt=1e5", "system_prompt", "1e5"),
        ("system_prompt=2e3 words", "system_prompt", "2e3 words"),
        ("system_prompt=2024-02-30", "system_prompt", "2024-02-30"),
        ("system_prompt=no", "system_prompt", "no"),
        ("system_prompt='1e5'", "system_prompt", "1e5"),
        ("system_prompt='a' and 'b'", "system_prompt", "'a' and 'b'"),
        ("system_prompt='a' # b", "system_prompt", "'a' # b"),
        ("system_prompt= x ", "system_prompt", " x "),
        ("system_prompt=[INST]", "system_prompt", "[INST]"),
        ("system_prompt={a: b}", "system_prompt", "{a: b}"),
        ("system_prompt=@name", "system_prompt", "@name"),
        ("system_prompt=: x", "system_prompt", ": x"),
        ("system_prompt=a: b\nc: d", "system_prompt", "a: b\nc: d"),
        ("system_prompt=none", "system_prompt", "none"),
        ("validation=2024-02-30.jsonl", "validation", str(Path("2024-02-30.jsonl").absolute())),
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


@pytest.mark.parametrize(
    "word", ["1e5", "5e-4_lora", "2024-02-30", "0x1f", "0x_", "1_000", ".5e3x", "off", "Yes", "1:30", "nan"]
)
@pytest.mark.parametrize("source", ["file", "flag", "environment"])
def test_a_word_is_text_where_the_key_takes_text(tmp_path: Path, word: str, source: str) -> None:
    keys = {"output": word, "base": word, "data.columns.prompt": word, "default_system": word, "data.path": f"[{word}]"}
    path = tmp_path / "c.yaml"
    lines = [f"{key}: {text}" for key, text in keys.items() if "." not in key]
    nested = f"data: {{path: [{word}], columns: {{prompt: {word}}}}}"
    path.write_text("\n".join([*lines, nested, f"added_tokens: [{word}]"]), encoding="utf-8")
    flags = [f"{key}={text}" for key, text in (keys | {"added_tokens": f"[{word}]"}).items()]
    environment = {}
    for flag in flags:
        key, _, text = flag.partition("=")
        environment[f"HOTSWAP_TRAIN_{key.replace('.', '__').upper()}"] = text
    config = {
        "file": lambda: load_config(path, (), {}),
        "flag": lambda: load_config(None, flags, {}),
        "environment": lambda: load_config(None, (), environment),
    }[source]()
    assert (config.base, config.data.system_prompt, config.data.columns.prompt) == (word, word, word)
    assert (config.output, config.data.path) == (os.path.abspath(word), [os.path.abspath(word)])
    assert config.added_tokens == [word]


def test_a_word_is_a_number_or_a_switch_where_the_key_takes_one(file: Path) -> None:
    training = load_config(
        file, ["batch_size=0x10", "max_steps=1_000", "learning_rate=.5e-3", "packing=on"], {}
    ).training
    assert (training.batch_size, training.max_steps, training.learning_rate) == (16, 1000, 5e-4)
    assert training.packing
    assert load_config(file, ["validation=1_0"], {}).data.validation == 10.0


def text_keys(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """The dotted keys of ``struct`` that take any text."""
    for name, hint in typing.get_type_hints(struct).items():
        if name not in struct.__struct_fields__:
            continue
        is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        parts = typing.get_args(hint) if is_union else (hint,)
        if str in parts:
            yield prefix + name
        sections = [part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)]
        if len(sections) == 1:
            yield from text_keys(sections[0], f"{prefix}{name}.")


TEXT_KEYS = sorted(
    {
        *((f"{key}", "lora", "") for key in text_keys(TrainConfig)),
        *((f"method.{key}", kind, "") for kind, struct in METHODS.items() for key in text_keys(struct)),
        *((f"preference.{key}", "lora", kind) for kind, struct in PREFERENCES.items() for key in text_keys(struct)),
    }
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(TEXT_KEYS), text=TEXTS.filter(str.strip), rate=st.floats(1e-300, 1e300))
def test_every_text_and_number_that_is_written_is_read_back(
    tmp_path: Path, where: tuple[str, str, str], text: str, rate: float
) -> None:
    key, method, preference = where
    raw: dict[str, Any] = {"output": "/o", "data": {"path": "/d"}, "method": {"type": method}}
    raw["training"] = {"learning_rate": rate, "weight_decay": rate}
    if preference:
        raw["preference"] = {"type": preference, **({"reward": "a:b"} if preference == "grpo" else {})}
    *sections, leaf = key.split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
    place[leaf] = text
    config = msgspec.convert(raw, TrainConfig)
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert msgspec.convert(read(path), TrainConfig) == config


@example("---\n''")
@given(text=TEXTS)
def test_any_text_is_taken_as_it_is_written(text: str) -> None:
    says_nothing = text.strip() in ("", "~", "null", "Null", "NULL")
    if not says_nothing and text.strip()[0] not in "'\"":
        assert given_values([f"system_prompt={text}"], {}) == {"data": {"system_prompt": text}}
        environment = {"HOTSWAP_TRAIN_DATA__COLUMNS__PROMPT": text}
        assert given_values([], environment) == {"data": {"columns": {"prompt": text}}}


def read(path: Path) -> dict[str, Any]:
    """What ``load_config`` makes of a file before it looks at it."""
    from trainer.config.loading import _read_yaml  # its checks would refuse many texts

    return _read_yaml(path)


def test_all_refusals_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = (
        "data: {colums: {}}\ntraining: {epochs: many, batch_size: 0, scheduler: wild}\npure_bf16: true\nmethod: prefx\n"
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["tokens=4", "deepspeed=x.json", "noequals", "learning_rat=1"], {"HOTSWAP_TRAIN_EPOCH": "1"})
    assert str(caught.value).startswith("12 settings are refused:\n  ")
    said = "\n".join(caught.value.refusals)
    for words in (
        *("unknown key 'data.colums'", "training.epochs: Expected float, got str 'many'", "training.batch_size: "),
        *(
            "Invalid enum value 'wild'; choose from linear, cosine",
            "pure_bf16: set training.dtype",
            "unknown method 'prefx'",
        ),
        *("'noequals' is not key=value", "deepspeed: ", "did you mean 'training.learning_rate'", "'epoch'"),
        *("the configuration lacks 'output'", "the configuration lacks 'data'"),
    ):
        assert words in said
    with pytest.raises(ConfigError) as caught:
        load_config(
            None, ["output=o", "data=d", "warmup=1.5", "validation=1.5", "template=none", "system_prompt=x"], {}
        )
    assert len(caught.value.refusals) == 3


def test_a_start_is_told_from_the_run(file: Path) -> None:
    assert load_run(file, (), {})[1] == StartConfig()
    for setting, start in (
        ("resume_from_checkpoint=out/checkpoint-4", StartConfig(resume="out/checkpoint-4")),
        ("resume_from_checkpoint=True", StartConfig(resume=True)),
        ("resume_from_checkpoint=no", StartConfig()),
        ("resume_from_checkpoint=null", StartConfig()),
        ("overwrite_output_dir=1", StartConfig(overwrite=True)),
        ("overwrite=off", StartConfig()),
    ):
        config, found = load_run(file, [setting], {})
        assert found == start
        assert config == load_config(file, (), {})


def test_a_preference_run_does_not_get_a_recipes_added_tokens(file: Path) -> None:
    assert load_config(file, ["data.recipe=sqlqa"], {}).added_tokens == ["[SQL]", "[/SQL]"]
    config = load_config(file, ["data.recipe=sqlqa", "preference=dpo"], {})
    assert config.added_tokens == []
    assert convert(yaml.safe_load(dump_config(config))) == config
