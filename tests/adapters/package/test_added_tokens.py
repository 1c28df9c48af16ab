"""Which tokens a package says it adds: from its manifest, or from the tokenizer beside it."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.added_tokens import AddedToken, check_added, read_added_tokens, unnamed_rows
from adapters.package.manifest import encode_manifest, parse_manifest
from tests.factory import make_tokenizer

A, B = AddedToken(7, "<a>"), AddedToken(8, "<b>", special=True)
MANIFEST: dict[str, Any] = {
    "kind": "lora",
    "base": {"name": "b", "fingerprint": "f"},
    "created": "2026-01-01T00:00:00Z",
    "added_tokens": [{"id": 7, "content": "<a>"}, {"id": 8, "content": "<b>", "special": True}],
}


def write(path: Path, value: object) -> Path:
    (path / "tokenizer.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def write_all(path: Path, **files: object) -> Path:
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_a_package_without_a_tokenizer_adds_nothing(tmp_path: Path) -> None:
    assert read_added_tokens(tmp_path) == ()


def test_a_saved_tokenizer_lists_them_by_id(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<call>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path)
    found = read_added_tokens(tmp_path)
    assert [token.id for token in found] == [256, 257, 258, 259, 260]
    assert [token.content for token in found[-2:]] == ["<call>", "<|tool|>"]
    assert [token.special for token in found[-2:]] == [False, True]
    assert found[-2].normalized


def test_the_manifest_goes_before_the_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, {"added_tokens": [{"id": 1, "content": "x"}, {"id": 8, "content": "<b>", "special": False}]})
    manifest = parse_manifest(MANIFEST)
    assert read_added_tokens(tmp_path, tuple(reversed(manifest.added_tokens))) == (AddedToken(1, "x"), A, B)
    assert parse_manifest(json.loads(encode_manifest(manifest))) == manifest


def test_the_other_files_of_a_tokenizer_name_them_too(tmp_path: Path) -> None:
    config = {
        "model_max_length": 1000000000000000019884624838656,
        "added_tokens_decoder": {"9": {"content": "<c>", "lstrip": True, "normalized": False, "special": True}},
    }
    write_all(tmp_path, tokenizer_config=config, added_tokens={"<a>": 7, "<b>": 8, "<c>": 9, "<d>": 10})
    write_all(
        tmp_path, special_tokens_map={"pad_token": "<a>", "additional_special_tokens": [{"content": "<d>"}, "<e>"]}
    )
    assert read_added_tokens(tmp_path) == (
        AddedToken(7, "<a>", special=True),
        AddedToken(8, "<b>", normalized=True),
        AddedToken(9, "<c>", special=True, lstrip=True),
        AddedToken(10, "<d>", special=True),
    )


def test_what_save_pretrained_writes_names_the_same_tokens_in_every_file(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<call>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path)
    whole = read_added_tokens(tmp_path)
    decoder = {
        str(id_): {name: getattr(token, name) for name in ("content", "special", "normalized", "lstrip", "rstrip")}
        for id_, token in tokenizer.added_tokens_decoder.items()
    }
    (tmp_path / "tokenizer.json").unlink()
    write_all(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    assert read_added_tokens(tmp_path) == whole


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "another text": (
        {"tokenizer": {"added_tokens": [{"id": 7, "content": "<a>"}]}, "added_tokens": {"<b>": 7}},
        "token 7 is '<a>' in tokenizer.json and '<b>' in added_tokens.json",
    ),
    "another number": (
        {"tokenizer_config": {"added_tokens_decoder": {"7": {"content": "<a>"}}}, "added_tokens": {"<a>": 8}},
        "2 added tokens with the text '<a>'",
    ),
    "one number for two": ({"added_tokens": {"<a>": 8, "<b>": 8}}, "2 added tokens with the id '8'"),
    "no number": ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<a>"}}}}, "Expected `int`"),
    "no text": ({"tokenizer_config": {"added_tokens_decoder": {"7": {}}}}, "missing required field `content`"),
    "a list": ({"added_tokens": ["<a>"]}, "added_tokens.json: Expected `object`"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_sources_that_contradict_each_other_are_refused(name: str, tmp_path: Path) -> None:
    files, words = CONTRADICTIONS[name]
    with pytest.raises(PackageError, match=re.escape(words)):
        read_added_tokens(write_all(tmp_path, **files))


def test_rows_without_names_are_told() -> None:
    assert unnamed_rows((A, B), 7, 9) is None
    assert unnamed_rows((A, B), 9, 9) is None
    assert "has 2 rows more than the base's, and the package names no token" in str(unnamed_rows((A, B), 9, 11))


def test_a_large_vocabulary_is_passed_over(tmp_path: Path) -> None:
    """Of a tokenizer.json of 256,000 tokens only what it adds is built."""
    entries = b",".join(b'"%032x": %d' % (i, i) for i in range(256_000))
    data = b'{"added_tokens": [{"id": 7, "content": "<a>"}], "model": {"vocab": {%s}, "merges": [%s"x"]}}'
    (tmp_path / "tokenizer.json").write_bytes(data % (entries, b'["aaaaaaaa", "bbbbbbbbb"],\n' * 900_000))
    size = (tmp_path / "tokenizer.json").stat().st_size
    assert size > 32 << 20
    tracemalloc.start()
    try:
        assert read_added_tokens(tmp_path) == (A,)
        assert tracemalloc.get_traced_memory()[1] < size + (8 << 20)
    finally:
        tracemalloc.stop()


REFUSED: dict[str, tuple[object, str]] = {
    "no JSON": ("x", "malformed"),
    "no object": ("[]", "Expected `object`"),
    "nested for ever": ('{"a": ' + "[" * 200_000, "recursion|malformed|truncated"),
    "a list of texts": ({"added_tokens": ["<a>"]}, "Expected `object`, got `str`"),
    "no number": ({"added_tokens": [{"content": "<a>"}]}, "missing required field `id`"),
    "negative": ({"added_tokens": [{"id": -1, "content": "<a>"}]}, ">= 0"),
    "huge": ({"added_tokens": [{"id": 1 << 40, "content": "<a>"}]}, "<= 2147483647"),
    "empty": ({"added_tokens": [{"id": 1, "content": ""}]}, "length >= 1"),
    "long": ({"added_tokens": [{"id": 1, "content": "x" * 2000}]}, "length <= 1024"),
    "unknown flag": ({"added_tokens": [{"id": 1, "content": "x", "y": 1}]}, "unknown field `y`"),
    "one number twice": ({"added_tokens": [{"id": 1, "content": c} for c in "ab"]}, "2 added tokens with the id '1'"),
    "one text twice": ({"added_tokens": [{"id": i, "content": "a"} for i in (1, 2)]}, "with the text 'a'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    value, words = REFUSED[name]
    with pytest.raises(PackageError, match=words):
        read_added_tokens(write(tmp_path, value))


def test_limits(tmp_path: Path) -> None:
    write(tmp_path, {"added_tokens": [{"id": i, "content": str(i)} for i in range(5)]})
    with pytest.raises(PackageError, match="adds 5 tokens; at most 4 are served"):
        check_added(read_added_tokens(tmp_path), PackageLimits(max_added_tokens=4))
    with pytest.raises(PackageError, match="larger than 10 bytes"):
        read_added_tokens(tmp_path, limits=PackageLimits(max_tokenizer_bytes=10))
    with pytest.raises(PackageError, match="have 5 characters together; at most 4 are served"):
        check_added(read_added_tokens(tmp_path), PackageLimits(max_added_token_chars=4))
    with pytest.raises(PackageError, match=r"added tokens of tokenizer\.json take more than 50 bytes"):
        read_added_tokens(tmp_path, limits=PackageLimits(max_token_list_bytes=50))
    write(tmp_path, {"added_tokens": [{"id": i, "content": f"{i:01000}"} for i in range(200)]})
    with pytest.raises(PackageError, match="have 200000 characters together; at most 131072 are served"):
        check_added(read_added_tokens(tmp_path))


def test_roles_that_are_no_tokens_are_passed_over(tmp_path: Path) -> None:
    roles = {"eos_token": {"content": "<a>"}, "use_default": True, "more": [7, {"id": 1}, "<b>"], "image": {"x": "<c>"}}
    write_all(tmp_path, added_tokens={"<a>": 7, "<b>": 8, "<c>": 9}, special_tokens_map=roles)
    assert [token.special for token in read_added_tokens(tmp_path)] == [True, True, False]


def test_a_speech_bases_own_tokens_are_not_too_many(tmp_path: Path) -> None:
    """65,000 tokens for sounds: the tokenizer of every adapter for such a base lists them."""
    listed = {str(1000 + i): {"content": f"<|s_{i}|>", "special": False} for i in range(65_536)}
    write_all(tmp_path, tokenizer_config={"added_tokens_decoder": listed})
    assert len(read_added_tokens(tmp_path)) == 65_536
    with pytest.raises(PackageError, match="lists 65536 added tokens; at most 60000 are read"):
        read_added_tokens(tmp_path, limits=PackageLimits(max_listed_tokens=60_000))
