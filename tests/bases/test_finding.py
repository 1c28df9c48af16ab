from __future__ import annotations

from pathlib import Path

import pytest

from bases.errors import BaseModelError
from bases.finding import DEFAULT_BASE, GGUF_BLOCKS, cache_dir, default_base_dir, resolve_base


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_directory(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("HOTSWAP_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "hotswap"


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_base(str(tmp_path)) == tmp_path


def test_the_default_base_once_imported() -> None:
    with pytest.raises(BaseModelError, match="run: hotswap base import"):
        resolve_base(DEFAULT_BASE)
    default_base_dir().mkdir(parents=True)
    with pytest.raises(BaseModelError, match="run: hotswap base import"):
        resolve_base(DEFAULT_BASE)  # an interrupted import
    (default_base_dir() / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="by an earlier version; run: hotswap base import"):
        resolve_base(DEFAULT_BASE)
    (default_base_dir() / GGUF_BLOCKS).touch()
    assert resolve_base(DEFAULT_BASE) == default_base_dir()


@pytest.mark.parametrize("spec", ["", "nothing-here", "/no/such/dir", "a/b/c", "../x", "a b/c"])
def test_neither_directory_nor_hub_id(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelError, match=f"give a directory, GGUF file, hub id \\(org/name\\) or {DEFAULT_BASE}"):
        resolve_base(spec)


@pytest.mark.parametrize("spec", ["org/not-downloaded", "a--b/c", "a/" + "b" * 200])
def test_a_hub_id_that_cannot_be_had_offline(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="neither a directory nor in the local hub cache") as caught:
        resolve_base(spec)
    assert "\n" not in str(caught.value)
