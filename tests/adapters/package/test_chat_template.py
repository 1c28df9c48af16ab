"""What a package says of conversations is read from the files of the tokenizer that was saved beside it."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from adapters.limits import PackageLimits
from adapters.package.chat_template import NO_CHAT, PackageChat, read_chat

NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]


def write(directory: Path, **files: Any) -> Path:
    for stem, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / (f"{stem}.jinja" if stem == "chat_template" else f"{stem}.json")).write_text(text)
    return directory


def test_a_package_that_says_nothing(tmp_path: Path) -> None:
    assert read_chat(tmp_path) == NO_CHAT == PackageChat()


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template": "J"}, "J"),
        ({"tokenizer_config": {"chat_template": "C"}}, "C"),
        ({"chat_template": "J", "tokenizer_config": {"chat_template": "C"}}, "J"),
        ({"tokenizer_config": {"chat_template": NAMED}}, "D"),
        ({"tokenizer_config": {"chat_template": {"default": "D", "rag": "R"}}}, "D"),
        ({"tokenizer_config": {"chat_template": None, "model_max_length": 10**30}}, None),
        ({"chat_template": ""}, None),
    ],
)
def test_where_a_template_is_looked_for(tmp_path: Path, files: dict[str, Any], template: str | None) -> None:
    found = read_chat(write(tmp_path, **files))
    assert (found.template, found.warnings) == (template, ())
    wanted = None if template is None else hashlib.sha256(template.encode()).hexdigest()
    assert found.template_sha256 == wanted


def test_special_tokens_and_end_tokens(tmp_path: Path) -> None:
    config = {"eos_token": {"__type": "AddedToken", "content": "<e>", "special": True}, "bos_token": None}
    older = {"eos_token": "<other>", "bos_token": "<b>", "pad_token": ["no text"], "unk_token": "u" * 2000}
    ends = {"eos_token_id": [7, True, "x", -1, 9]}
    found = read_chat(write(tmp_path, tokenizer_config=config, special_tokens_map=older, generation_config=ends))
    assert dict(found.special_tokens) == {"eos_token": "<e>", "bos_token": "<b>"}
    assert (found.eos_token, found.end_token_ids, found.warnings) == ("<e>", (7, 9), ())
    found = read_chat(write(tmp_path, tokenizer_config={"bos_token": None, "eos_token": None}, special_tokens_map={}))
    assert (dict(found.special_tokens), found.eos_token) == ({"eos_token": "", "bos_token": ""}, None)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config": "{"}, "tokenizer_config.json is not used"),
        ({"tokenizer_config": "[1]"}, "tokenizer_config.json is not used"),
        ({"tokenizer_config": "[" * 100_000}, "tokenizer_config.json is not used"),
        ({"generation_config": "nonsense"}, "generation_config.json is not used"),
        ({"special_tokens_map": json.dumps({"x": "y" * 2000})}, "special_tokens_map.json is not used: it is longer"),
        ({"tokenizer_config": {"chat_template": NAMED[1:]}}, "there is none with the name 'default'"),
        ({"tokenizer_config": {"chat_template": 3}}, "its chat template is not used"),
        ({"tokenizer_config": {"chat_template": ["x"]}}, "its chat template is not used"),
        ({"chat_template": "x" * (2**20 + 1)}, "its chat template is not used: it is longer than 1048576 bytes"),
    ],
)
def test_what_cannot_be_read_is_told_and_refuses_nothing(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    limits = PackageLimits(max_json_bytes=1000) if "special_tokens_map" in files else PackageLimits()
    found = read_chat(write(tmp_path, **files), limits)
    assert found.template is None
    assert len(found.warnings) == 1
    assert words in found.warnings[0]
    assert len(found.warnings[0]) < 500


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert "can't decode" in read_chat(tmp_path).warnings[0]


def test_a_template_of_any_length_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(1 << 32)
    tracemalloc.start()
    try:
        assert "longer than 1048576 bytes" in read_chat(tmp_path).warnings[0]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_vocabulary_beside_it_is_passed_over(tmp_path: Path) -> None:
    listed = {str(i): {"content": f"<{i}>", "lstrip": False, "special": True} for i in range(20_000)}
    config = {"added_tokens_decoder": listed, "chat_template": "{{ messages }}", "eos_token": "<7>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_chat(tmp_path)
    assert (found.template, found.eos_token, found.warnings) == ("{{ messages }}", "<7>", ())


@pytest.mark.parametrize(
    "config",
    [
        b'{"chat_template": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"eos_token": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"x": 1' + b"".join(b',"%d":1' % i for i in range(300_000)) + b"}",
    ],
    ids=["templates", "a token", "keys"],
)
def test_lists_of_nothing_are_not_built(tmp_path: Path, config: bytes) -> None:
    """A million empty lists take half a second in which the collector lets nobody else run."""
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    tracemalloc.start()
    try:
        assert read_chat(tmp_path).template is None
        assert tracemalloc.get_traced_memory()[1] < len(config) + (4 << 20)
    finally:
        tracemalloc.stop()
