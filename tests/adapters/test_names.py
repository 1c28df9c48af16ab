from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import PackageError
from adapters.names import check_name, shown


@pytest.mark.parametrize("name", ["a", "A1", "contacts-v2", "x.y_z-1", "0", "a" * 128])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", ".a", "_a", "a b", "a\n", "é", "a" * 129, "a@1"])
def test_bad_names(name: str) -> None:
    with pytest.raises(PackageError, match="cannot name an adapter"):
        check_name(name)


@given(st.text())
def test_foreign_text_is_shown_short_and_printable(text: str) -> None:
    out = shown(text)
    assert out.isascii()
    assert out.isprintable()
    assert len(out) <= 120
    assert {out[0], out[-1]} <= {"'", '"'}
