"""The table of slow cases names tests that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slow_cases import EVERY


@pytest.mark.parametrize("test", EVERY)
def test_there_is_such_a_test(test: str) -> None:
    path, name = test.split("::")
    assert f"def {name}(" in (Path(__file__).parent / path).read_text()
