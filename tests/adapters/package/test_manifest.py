"""Manifests are read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import PackageError
from adapters.package.manifest import encode_manifest, parse_manifest, read_manifest
from adapters.package.reading import read_package
from tests.adapters.support import MANIFEST


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "prefix"}, "manifest calls this a 'prefix' adapter, its config a 'lora' one"),
        ({"format_version": 2}, "format_version '2'; this server reads 1: upgrade"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"base": {"name": "x"}}, "missing required field `fingerprint`"),
        ({"chat_template_sha256": "xyz"}, "chat_template_sha256"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2026-01-02T03:04:05"}, "created"),
        ({"data": {"sha256": "b" * 64, "rows": -1}}, "rows"),
        ({"metrics": {"a": "b"}}, "metrics"),
    ],
)
def test_bad_manifests(change: dict[str, Any], words: str, package: Path) -> None:
    raw = {**json.loads(encode_manifest(MANIFEST)), **change}
    (package / "hotswap.json").write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=words):
        read_package(package)


def test_manifest_round_trip(tmp_path: Path) -> None:
    assert parse_manifest(json.loads(encode_manifest(MANIFEST))) == MANIFEST
    assert read_manifest(tmp_path) is None
