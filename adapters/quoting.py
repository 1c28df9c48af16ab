"""Foreign text in messages: quoted on one line, never long."""

from __future__ import annotations

_MAX_QUOTED = 120  # characters of a foreign name that a message repeats
_MAX_DESCRIPTION = 300  # of another library's words


def quote(text: object) -> str:
    """``text`` quoted for a message: printable, on one line, never long."""
    quoted = ascii(str(text)[: _MAX_QUOTED + 1])
    return quoted if len(quoted) <= _MAX_QUOTED else quoted[: _MAX_QUOTED - 4] + "...'"


def describe_error(error: Exception) -> str:
    """What ``error`` says, made fit for a message: a parser's words may repeat foreign text, of any length."""
    return "".join(c if c.isprintable() else "?" for c in str(error)[:_MAX_DESCRIPTION])
