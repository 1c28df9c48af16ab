"""dataset_info.json and Axolotl's datasets: paths, shapes, columns, tags and splits in keys of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trainer.config.data import DataConfig
from trainer.config.loading import load_config
from trainer.config.preference import DpoPreference, KtoPreference, PreferenceColumns
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError

INFO: dict[str, Any] = {
    "identity": {"file_name": "identity.json"},
    "alpaca": {"file_name": "alpaca.json"},
    "adgen": {"file_name": "adgen.json", "columns": {"prompt": "content", "response": "summary"}},
    "firefly": {"file_name": "f.json", "columns": {"prompt": "kind", "query": "input", "response": "target"}},
    "share": {"file_name": "s.json", "formatting": "sharegpt", "columns": {"tools": "functions", "system": "system"}},
    "openai": {
        "file_name": "o.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "odd": {
        "file_name": "odd.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "client", "assistant_tag": "agent"},
    },
    "wiki": {"file_name": "wiki.txt", "columns": {"prompt": "text"}},
    "web": {"hf_hub_url": "org/web", "columns": {"prompt": "raw"}, "subset": "en", "split": "full"},
    "pairs": {
        "file_name": "p.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "good", "rejected": "bad"},
    },
    "alpaca_pairs": {"file_name": "ap.json", "ranking": True, "columns": {"prompt": "question", "chosen": "chosen"}},
    "judged": {"file_name": "j.json", "columns": {"prompt": "prompt", "response": "answer", "kto_tag": "kto_tag"}},
    "pictures": {"file_name": "v.json", "columns": {"images": "images"}},
    "scripted": {"script_url": "s"},
    "china": {"ms_hub_url": "a/b"},
    "strange": {"file_name": "x.json", "formatting": "parquet"},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of LLaMA-Factory's guide, in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    return tmp_path


def load(*overrides: str) -> TrainConfig:
    return load_config(None, ["output=out", *overrides], {})


def changed(data: DataConfig) -> dict[str, Any]:
    """What of ``data`` is not the default; a path by its last parts."""
    default = msgspec.to_builtins(DataConfig(path=""))
    return {
        key: _changes(value, default[key]) for key, value in msgspec.to_builtins(data).items() if value != default[key]
    }


def _changes(value: Any, default: Any) -> Any:
    if isinstance(value, dict):
        return {key: one for key, one in value.items() if one != default[key]}
    if isinstance(value, list):
        return [Path(one).name for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", {"path": "identity.json", "shape": "alpaca"}),
        ("identity,alpaca", {"path": ["identity.json", "alpaca.json"], "shape": "alpaca"}),
        (
            "adgen",
            {"path": "adgen.json", "shape": "prompt_response", "columns": {"prompt": "content", "response": "summary"}},
        ),
        ("firefly", {"path": "f.json", "shape": "alpaca", "columns": {"prompt": "kind", "response": "target"}}),
        ("share", {"path": "s.json", "shape": "sharegpt", "columns": {"tools": "functions"}}),
        ("openai", {"path": "o.json", "shape": "messages"}),
        (
            "odd",
            {
                "path": "odd.json",
                "shape": "sharegpt",
                "columns": {"messages": "talk"},
                "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "client", "assistant_tag": "agent"},
            },
        ),
        ("other/rows.json", {"path": "rows.json"}),
        ("org/set", {"path": "hub:org/set"}),
    ],
)
def test_a_named_data_set_is_read_as_it_is_described(here: Path, name: str, expected: dict[str, Any]) -> None:
    (here / "other").mkdir()
    (here / "other" / "rows.json").write_text("[]", encoding="utf-8")
    assert changed(load(f"dataset={name}").data) == expected


def test_what_is_said_beside_a_name_holds(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load("dataset=adgen", "eval_dataset=adgen", "prompt_column=other", "split=test").data
    assert (data.columns.prompt, data.columns.response, data.split) == ("other", "summary", "test")
    assert data.validation == str(here / "data" / "adgen.json")
    assert "says data.columns.prompt: content, but other is given and taken" in caplog.text


def test_the_folder_may_be_named_or_be_that_of_the_configuration(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load("dataset=alpaca", f"dataset_dir={here / 'data'}").data.path == str(here / "data" / "alpaca.json")
    file = here / "run.yaml"
    file.write_text("output: out\ndataset: alpaca\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_config(file, (), {}).data.path == str(here / "data" / "alpaca.json")
    with pytest.raises(ConfigError, match=r"there is no dataset_info\.json here or in data that describes it"):
        load("dataset=alpaca")
    with pytest.raises(ConfigError, match=r"dataset_dir: there is no dataset_info\.json in nowhere"):
        load("dataset=alpaca", "dataset_dir=nowhere")


def test_pre_training_learns_the_prompts_column(here: Path) -> None:
    config = load("stage=pt", "dataset=wiki", "cutoff_len=256")
    text = {"path": "wiki.txt", "shape": "text", "max_length": 256, "too_long": "split"}
    assert (changed(config.data), config.training.packing) == (text, "auto")
    assert changed(load("stage=pt", "dataset=web").data) == {
        "path": "hub:org/web",
        "shape": "text",
        "columns": {"text": "raw"},
        "split": "en/full",
        "too_long": "split",
    }
    own = load("too_long=drop", "stage=pt", "dataset=wiki", "packing=false")
    assert (own.data.too_long, own.training.packing) == ("drop", False)
    assert load("stage=pt", "dataset=wiki", "pre_seq_len=4").training.packing is False  # a prefix stands before rows


def test_preferences_and_judgements(here: Path) -> None:
    pairs = load("stage=dpo", "dataset=pairs")
    assert pairs.preference == DpoPreference(columns=PreferenceColumns(chosen="good", rejected="bad"))
    assert changed(pairs.data) == {"path": "p.json"}
    assert load("dataset=alpaca_pairs", "stage=rm").data.columns.prompt == "question"
    judged = load("stage=kto", "dataset=judged").preference
    assert judged == KtoPreference(columns=PreferenceColumns(completion="answer", label="kto_tag"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=alpca"], "knows no alpca; did you mean alpaca?"),
        (["dataset=zzz"], "knows no zzz; it knows identity, alpaca"),
        (["dataset=identity,adgen"], "they are not written alike (data.columns.prompt: None and content)"),
        (["dataset=identity", "eval_dataset=alpaca,identity"], "rows to validate on come from one path; there are 2"),
        (["dataset=pairs"], "holds pairs of answers (ranking); give stage: dpo, or rm"),
        (["dataset=pictures"], "has images; bases here read text alone"),
        (["dataset=scripted"], "is made by a script, which is not run"),
        (["dataset=china"], "download it and give its file with file_name"),
        (["dataset=strange"], "formatting 'parquet' is not known; it is alpaca or sharegpt"),
        (["stage=pt", "dataset=wiki", "preference=dpo"], "stage: pt learns plain text"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_what_to_do(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert words in str(caught.value)
    assert len(caught.value.refusals) == 1  # no data is lacking besides


def test_a_broken_description_is_refused(here: Path) -> None:
    info = here / "data" / "dataset_info.json"
    for text, words in (
        ("{", "is not JSON"),
        ("[]", "must be one object"),
        ('{"a": []}', "must be described by an ob"),
    ):
        info.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            load("dataset=a")


def axolotl(here: Path, text: str, *overrides: str) -> TrainConfig:
    file = here / "axolotl.yml"
    file.write_text(f"output_dir: out\n{text}", encoding="utf-8")
    return load_config(file, overrides, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{path: org/set, type: alpaca}]", {"path": "hub:org/set", "shape": "alpaca"}),
        ("[{path: org/set, revision: v1, split: test, name: en}]", {"path": "hub:org/set@v1", "split": "en/test"}),
        ("[{path: a.jsonl, type: sharegpt}, {path: b.jsonl, type: sharegpt}]", {"path": ["a.jsonl", "b.jsonl"]}),
        ("[{path: json, data_files: [a.jsonl, b.jsonl], type: alpaca}]", {"path": ["a.jsonl", "b.jsonl"]}),
        ("[{path: a.jsonl, type: chat_template}]", {"path": "a.jsonl", "shape": "messages"}),
        (
            "[{path: a.jsonl, type: chat_template, field_messages: talk,"
            " message_property_mappings: {role: who, content: what}, roles: {user: [human, client]}}]",
            {
                "path": "a.jsonl",
                "columns": {"messages": "talk"},
                "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "client"},
            },
        ),
        (
            "[{path: a.jsonl, type: {field_instruction: q, field_output: a, system_prompt: Be brief.}}]",
            {"columns": {"prompt": "q", "response": "a"}, "system_prompt": "Be brief."},
        ),
        ("[{path: a.txt, type: completion}]", {"path": "a.txt", "shape": "text", "too_long": "split"}),
        ("[{path: a.jsonl, type: completion, field: body}]", {"columns": {"text": "body"}, "too_long": "split"}),
    ],
)
def test_axolotls_data_sets(here: Path, text: str, expected: dict[str, Any]) -> None:
    found = changed(axolotl(here, f"datasets: {text}").data)
    assert {key: found.get(key) for key in expected} == expected


def test_axolotls_other_lists(here: Path) -> None:
    both = axolotl(here, "datasets: [{path: a.jsonl, type: alpaca}]\ntest_datasets: [{path: b.jsonl, type: alpaca}]\n")
    assert both.data.validation == str(here / "b.jsonl")
    plain = axolotl(here, "pretraining_dataset: org/web\nmax_steps: 5\n")
    assert (plain.data.path, plain.data.too_long, plain.training.packing) == ("hub:org/web", "split", "auto")
    for text, words in (
        ("datasets: [{type: alpaca}]", "each of them must have a path"),
        ("datasets: [{path: a, split: 'train[:10%]'}]", "takes a part of the rows"),
        ("datasets: [{path: a, type: alpaca}]\ndataset: alpaca", "both name the training data"),
    ):
        with pytest.raises(ConfigError) as caught:
            axolotl(here, text)
        assert words in str(caught.value)
