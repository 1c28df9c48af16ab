"""The table of slow cases names tests that there are."""

from __future__ import annotations

from pathlib import Path

from tests.slow_cases import EVERY


def test_there_are_such_tests() -> None:
    here = Path(__file__).parent
    names = [test.split("::") for test in EVERY]
    assert [name for path, name in names if f"def {name}(" not in (here / path).read_text()] == []
