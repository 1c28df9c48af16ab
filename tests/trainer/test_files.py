"""Writes that fail are said in words, whichever library wrote, and leave nothing behind."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import CheckpointError
from trainer.files import replacing, write_failure, write_whole

TENSORS = {"a": torch.zeros(10_000)}


@contextmanager
def files_below(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes within."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_torch_and_safetensors_say_of_a_failed_write_is_understood(tmp_path: Path) -> None:
    with files_below(1000), pytest.raises(Exception) as torchs:  # noqa: PT011 - whatever it is
        torch.save(TENSORS, tmp_path / "t")
    assert write_failure(torchs.value) == "the disk is full, or does not take so large a file"
    with files_below(1000), pytest.raises(Exception) as safe:  # noqa: PT011
        save_file(TENSORS, tmp_path / "s")
    assert write_failure(safe.value) == "File too large (os error 27)"
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space") as full:
        file.write(b"x")
    assert write_failure(full.value) == "the disk is full: No space left on device"
    assert write_failure(OSError(errno.EROFS, "Read-only file system", "x")) == "Read-only file system"
    assert write_failure(RuntimeError("size mismatch")) == ""


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with replacing(target) as scratch:
        (scratch / "a").write_text("old")
    words = "target cannot be written: File too large"
    with files_below(1000), pytest.raises(CheckpointError, match=words), replacing(target) as scratch:
        save_file(TENSORS, scratch / "s")
    with pytest.raises(RuntimeError, match="of the work"), replacing(target):
        raise RuntimeError("of the work")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "a").read_text() == "old"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with files_below(1000), pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "a", "x" * 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
