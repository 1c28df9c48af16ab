"""Paths of a configuration, which a run keeps so that it can be repeated from any folder."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.errors import ConfigError


def absolute(path: str) -> str:
    """``path`` from the root, ``~`` and ``..`` resolved by their names; links are not followed. Raises ConfigError."""
    return os.path.abspath(_expanded(path))


def exists(path: str) -> bool:
    """Whether there is a file or folder ``path``. Raises ConfigError where nobody can tell."""
    try:
        _expanded(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path[:200]} cannot be looked at: {getattr(error, 'strerror', error)}") from error
    return True


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path} begins with the home of a user whom this machine does not know") from error
