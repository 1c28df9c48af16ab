from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.catalog.watching.folder import look, scan

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def make(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)


def test_what_is_a_package_and_what_is_not(tmp_path: Path) -> None:
    make(tmp_path / "whole", CONFIG, WEIGHTS, "README.md")
    make(tmp_path / "begun", WEIGHTS)
    make(tmp_path / "other", "README.md", ".adapter_config.json.Xy1")
    make(tmp_path / "empty")
    make(tmp_path / ".hidden", CONFIG)
    for name in ("a.tar", "b.TAR.GZ", "c.tgz", "d.v2.zip", "e.txt", "adapter_config.json", ".f.tar", "g.tar.part"):
        (tmp_path / name).write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    found, passed_over = scan(tmp_path)
    assert set(found) == {"whole", "begun", "a", "b", "c", "d.v2"}
    assert passed_over == []
    assert [file[0] for file in found["whole"].signature] == [CONFIG, WEIGHTS]


def test_of_one_name_the_folder(tmp_path: Path) -> None:
    make(tmp_path / "json", CONFIG)
    for name in ("json.tar", "json.zip", "other.tar", "other.zip"):
        (tmp_path / name).write_text("")
    found, passed_over = scan(tmp_path)
    assert (found["json"].path.name, found["other"].path.name) == ("json", "other.tar")
    assert passed_over == ["json.tar", "json.zip", "other.zip"]


@pytest.mark.parametrize(
    ("name", "arriving"),
    [
        (".adapter_model.safetensors.k3Xz9Q", True), ("adapter_config.json.part", True), (f"{CONFIG}.tmp", True),
        ("adapter_model.safetensors~", True), ("._adapter_config.json", False), ("README.md.part", False),
        (".DS_Store", False), ("optimizer.pt", False),
    ],
)  # fmt: skip
def test_files_that_are_still_written(tmp_path: Path, name: str, arriving: bool) -> None:
    make(tmp_path / "json", CONFIG, WEIGHTS, name)
    entry = look(tmp_path / "json")
    assert entry is not None
    assert entry.arriving == arriving
    assert len(entry.signature) == 2


def test_what_changes_a_package(tmp_path: Path) -> None:
    make(tmp_path / "json", CONFIG, WEIGHTS)
    seen = [look(tmp_path / "json")]
    os.utime(tmp_path / "json" / CONFIG, ns=(1, 1))
    seen.append(look(tmp_path / "json"))
    (tmp_path / "json" / "adapter_model.bin").write_text("a reason to refuse it")
    (tmp_path / "json" / WEIGHTS).unlink()
    seen.append(look(tmp_path / "json"))
    (tmp_path / "json" / "checkpoint-1").mkdir()
    (tmp_path / "json" / "notes.txt").write_text("")
    assert look(tmp_path / "json") == seen[-1]
    (tmp_path / "json" / "1_Pooling").mkdir()
    (tmp_path / "json" / "1_Pooling" / "config.json").write_text("{}")
    seen.append(look(tmp_path / "json"))
    assert len(set(seen)) == 4
