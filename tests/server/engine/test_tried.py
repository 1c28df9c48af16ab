"""What was tried stays so for engines that compute alike, whatever becomes of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.tried import TriedContents

A, B = "a" * 64, "b" * 64


def test_it_outlives_the_engine_and_is_of_its_kind_alone(tmp_path: Path) -> None:
    first = TriedContents(tmp_path, "nf4")
    first.add(A)
    first.add(A)
    assert A in TriedContents(tmp_path, "nf4")
    assert B not in TriedContents(tmp_path, "nf4")
    assert A not in TriedContents(tmp_path, "none")
    (file,) = tmp_path.iterdir()
    assert file.read_text() == f"{A}\n"
    file.write_bytes(file.read_bytes() + b"\xff\xfe" + B[:40].encode())  # a disk that was full
    again = TriedContents(tmp_path, "nf4")
    assert (A in again, B in again) == (True, False)


def test_without_a_place_it_is_remembered_as_long_as_the_engine_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = TriedContents()
    alone.add(A)
    assert A in alone
    lost = TriedContents(tmp_path / "absent", "nf4")
    lost.add(A)
    lost.add(B)
    assert A in lost
    assert caplog.text.count("cannot be written") == 1
