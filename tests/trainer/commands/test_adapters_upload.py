"""What an upload's path means: files of this machine, or a source that the server reads."""

from __future__ import annotations

import pytest

from trainer.commands.adapters_upload import is_source, source_fields
from trainer.commands.adapters_verbs import share_argument


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("hf:org/name", {"source": "hf://org/name"}),
        ("hf:org/name@v1.0", {"source": "hf://org/name", "revision": "v1.0"}),
        ("HF://org/name@refs/pr/1", {"source": "hf://org/name", "revision": "refs/pr/1"}),
        ("https://x.example/a.zip?v=1@2", {"source": "https://x.example/a.zip?v=1@2"}),
        ("s3://bucket/key", {"source": "s3://bucket/key"}),
        ("file:///srv/a", {"source": "file:///srv/a"}),
    ],
)
def test_sources(path: str, fields: dict[str, str]) -> None:
    assert is_source(path)
    assert source_fields(path) == fields


@pytest.mark.parametrize("path", ["runs/a", "./hf", "/abs/a.tar.gz", "org/name", "hf", r"C:\runs\a"])
def test_paths_of_this_machine(path: str) -> None:
    assert not is_source(path)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0.1%", 0.001), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert share_argument(text) == share
