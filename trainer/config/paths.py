"""Paths of a configuration, which a run keeps so that it can be repeated from any folder."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(path: str) -> str:
    """``path`` from the root, ``~`` and ``..`` resolved by their names; links are not followed."""
    return os.path.abspath(Path(path).expanduser())
