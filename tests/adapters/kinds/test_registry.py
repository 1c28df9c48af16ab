"""Configurations are read strictly; every kind of peft's, also of a newer one, is served or refused for a reason."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import PeftType

from adapters.errors import AdapterError, PackageError, UnsupportedKindError
from adapters.kinds.registry import KINDS, REFUSED, parse_config
from adapters.limits import PackageLimits
from adapters.package.inspection import read_config
from tests.adapters.support import LORA_CONFIG, refusal

OWN = {"BOTTLENECK", "FREEZE"}  # formats that peft does not have


def test_every_kind_of_pefts_is_served_or_refused() -> None:
    assert {*KINDS} - OWN | {*REFUSED} == {kind.value for kind in PeftType}
    assert not {*KINDS} & {*REFUSED}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_gives_its_reason(kind: str) -> None:
    with pytest.raises(UnsupportedKindError) as error:
        parse_config({"peft_type": kind, "task_type": "CAUSAL_LM"})
    assert str(error.value) == f"adapters of peft_type '{kind}' are not served: {REFUSED[kind]}"


def test_everything_peft_writes_is_accepted(tmp_path: Path) -> None:
    import peft

    common = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "x/y", "revision": "main"}
    peft.LoraConfig(target_modules={"a", "b"}, lora_dropout=0.1, **common).save_pretrained(tmp_path / "lora")
    peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, **common).save_pretrained(tmp_path / "prefix")
    peft.PromptTuningConfig(
        num_virtual_tokens=3,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="x",
        tokenizer_name_or_path="y",
        **common,
    ).save_pretrained(tmp_path / "prompt")
    kinds = {name: read_config(tmp_path / name).KIND for name in ("lora", "prefix", "prompt")}
    assert kinds == {"lora": "lora", "prefix": "prefix", "prompt": "prompt"}
    assert read_config(tmp_path / "lora").base_model_name_or_path == "x/y"


@pytest.mark.parametrize("kind", sorted({*KINDS} - OWN))
def test_every_field_of_pefts_config_is_known(kind: str) -> None:
    ours, theirs = KINDS[kind].config, PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    assert {it.name for it in fields(theirs)} <= {*ours.__struct_fields__, *ours.IGNORED, *ours.REFUSED}


def test_other_kinds_are_named_with_what_is_served() -> None:
    with pytest.raises(UnsupportedKindError, match=r"'TOMORROW' are not served; served are LORA, .*PREFIX_TUNING"):
        parse_config({"peft_type": "TOMORROW"})


@pytest.mark.parametrize("task", ["QUESTION_ANS", "anything"])
def test_other_tasks_are_refused(task: str) -> None:
    with pytest.raises(UnsupportedKindError, match=r"adapters of CAUSAL_LM, .* are served"):
        parse_config({**LORA_CONFIG, "task_type": task})


def test_unknown_keys_pass_only_when_off() -> None:
    values: list[object] = [None, False, "", [], {}]
    for off in values:
        parse_config({**LORA_CONFIG, "use_tomorrow": off})
    for on in (True, 0, 1, "x", [0], {"a": None}):
        with pytest.raises(PackageError, match=r"unknown key 'use_tomorrow'.*peft 0\.21"):
            parse_config({**LORA_CONFIG, "use_tomorrow": on})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": 4096}, "1 to 1024"),
        ({"r": "8"}, "Expected `int`"),
        ({"r": True}, "Expected `int`"),
        ({"r": 2.5}, "Expected `int`"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "must be finite"),
        ({"rank_pattern": {"x": 0}}, "rank_pattern 'x' is 0"),
        ({"rank_pattern": ["x"]}, "Expected `object"),
        ({"bias": "some"}, "bias"),
        ({"init_lora_weights": "magic"}, "'magic' is unknown"),
        ({"target_modules": {"a": 1}}, "target_modules"),
        ({"target_modules": "a" * 3000}, "longer than 2048 characters"),
        ({"target_modules": ["a"] * 20_000}, "20000 module patterns"),
        ({"peft_type": 3}, "does not say a peft_type"),
        ({"peft_type": None}, "does not say a peft_type"),
    ],
)
def test_bad_values_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PackageError, match=words):
        parse_config({**LORA_CONFIG, **change})


def test_prompt_kinds_check_their_counts() -> None:
    with pytest.raises(PackageError, match="num_virtual_tokens is 0"):
        parse_config({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 0})
    with pytest.raises(PackageError, match="num_virtual_tokens is 9"):
        parse_config({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 9}, PackageLimits(max_virtual_tokens=8))
    with pytest.raises(PackageError, match="num_transformer_submodules is 3"):
        parse_config({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 9, "num_transformer_submodules": 3})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b'{"r": NaN}', "not valid JSON"),
        (b'{"r": 1, "r": 2}', "'r' appears twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"peft_type": "\\ud800"}', "not valid JSON"),
        (b'{"r":' + b"1" * 5000 + b"}", "not valid JSON"),
        (b" " * 100, "longer than 64 bytes"),
    ],
)
def test_bad_json_is_a_package_error(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text)
    limits = PackageLimits(max_config_bytes=64) if text == b" " * 100 else PackageLimits()
    with pytest.raises(PackageError, match=words):
        read_config(tmp_path, limits)


def test_a_missing_config_is_a_package_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no adapter_config\.json"):
        read_config(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
known_keys = sorted(
    {key for it in KINDS.values() for key in (*it.config.__struct_fields__, *it.config.IGNORED, *it.config.REFUSED)}
)


@given(
    st.sampled_from([*KINDS, *REFUSED, ""]),
    st.dictionaries(st.sampled_from(known_keys) | st.text(), json_values, max_size=6),
)
def test_any_json_is_read_or_refused(peft_type: str, raw: dict[str, Any]) -> None:
    start = LORA_CONFIG if peft_type == "LORA" else {"num_virtual_tokens": 2}
    words = refusal(
        lambda: json.dumps(parse_config({**start, **raw, "peft_type": peft_type}).semantics(), allow_nan=False)
    )
    assert words.isprintable()
    assert len(words) < 2000


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "adapter_config.json").write_bytes(data)
    with pytest.raises(AdapterError):
        read_config(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_compiler(kind: str) -> None:
    assert KINDS[kind].load_compiler().__module__.startswith("adapters.kinds.")
