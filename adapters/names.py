"""The rule for the names under which adapters are served."""

from __future__ import annotations

import re

from adapters.errors import PackageError
from adapters.quoting import quote

MAX_NAME = 128
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_TUNED = rf"ft:{_PLAIN}:{_PLAIN}:[A-Za-z0-9._-]*:[A-Za-z0-9]+(?::ckpt-step-[0-9]+)?"  # of fine-tuning jobs
_NAME = re.compile(f"{_PLAIN}|{_TUNED}")


def check_name(name: str) -> str:
    """Return ``name`` when it may name an adapter; PackageError otherwise."""
    if len(name) <= MAX_NAME and _NAME.fullmatch(name):
        return name
    raise PackageError(
        f"{quote(name)} cannot name an adapter: use 1 to {MAX_NAME} letters, digits, '.', '_' or '-', "
        "beginning with a letter or digit (or ft:BASE:ORGANIZATION:SUFFIX:ID, as fine-tuning jobs do)"
    )


def tuned_name(base: str, organization: str, suffix: str, id: str) -> str:
    """What a fine-tuning job calls the adapter it makes of ``base``, the name of a base model or a path.

    What no name may hold becomes a dash, and what is too long is cut, so that the whole is a name, and the names of its
    checkpoints are.
    """
    parts = [_fit(base.rpartition("/")[2], 24), _fit(organization, 16), _cleaned(suffix)[:56], id]
    return check_name(":".join(["ft", *parts]))


def checkpoint_name(name: str, step: int) -> str:
    """What the model is called that the job of ``name`` had made after so many steps."""
    return check_name(f"{name}:ckpt-step-{step}")


def _fit(text: str, length: int) -> str:
    return _cleaned(text).lstrip("._-")[:length] or "x"


def _cleaned(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)
