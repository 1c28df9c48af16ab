"""Foreign text in messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters.quoting import quote


@given(st.text())
def test_foreign_text_is_shown_short_and_printable(text: str) -> None:
    out = quote(text)
    assert out.isascii()
    assert out.isprintable()
    assert len(out) <= 120
    assert {out[0], out[-1]} <= {"'", '"'}
