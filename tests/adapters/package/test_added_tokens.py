"""Which tokens a package says it adds: from its manifest, or from the tokenizer beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.added_tokens import AddedToken, read_added_tokens
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
    write(tmp_path, {"added_tokens": [{"id": 1, "content": "x"}]})
    manifest = parse_manifest(MANIFEST)
    assert read_added_tokens(tmp_path, tuple(reversed(manifest.added_tokens))) == (A, B)
    assert parse_manifest(json.loads(encode_manifest(manifest))) == manifest


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
    with pytest.raises(PackageError, match="names 5 added tokens; 4 are read"):
        read_added_tokens(tmp_path, limits=PackageLimits(max_added_tokens=4))
    with pytest.raises(PackageError, match="larger than 10 bytes"):
        read_added_tokens(tmp_path, limits=PackageLimits(max_tokenizer_bytes=10))
