"""Names that come from outside: the rule for adapter names, and how foreign text is shown in messages."""

from __future__ import annotations

import re

from adapters.errors import PackageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHOWN = 120  # characters of a foreign name that a message repeats
_REASON = 300  # of another library's words


def check_name(name: str) -> str:
    """Return ``name`` when it may name an adapter; PackageError otherwise."""
    if _NAME.fullmatch(name):
        return name
    raise PackageError(
        f"{shown(name)} cannot name an adapter: use 1 to 128 letters, digits, '.', '_' or '-', "
        "beginning with a letter or digit"
    )


def shown(text: object) -> str:
    """``text`` quoted for a message: printable, on one line, never long."""
    quoted = ascii(str(text)[: _SHOWN + 1])
    return quoted if len(quoted) <= _SHOWN else quoted[: _SHOWN - 4] + "...'"


def reason(error: Exception) -> str:
    """What ``error`` says, made fit for a message: a parser's words may repeat foreign text, of any length."""
    return "".join(c if c.isprintable() else "?" for c in str(error)[:_REASON])
