"""The rule for the names under which adapters are served."""

from __future__ import annotations

import re

from adapters.errors import PackageError
from adapters.quoting import quote

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str) -> str:
    """Return ``name`` when it may name an adapter; PackageError otherwise."""
    if _NAME.fullmatch(name):
        return name
    raise PackageError(
        f"{quote(name)} cannot name an adapter: use 1 to 128 letters, digits, '.', '_' or '-', "
        "beginning with a letter or digit"
    )
