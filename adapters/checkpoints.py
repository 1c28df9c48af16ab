"""Places in long work where the thread that does it may be held up, because others are in a greater hurry.

The work calls ``checkpoint`` between its parts, whoever it is done for. Who has it done says what happens there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Held(threading.local):
    by: Callable[[], None] | None = None


_held = _Held()


def checkpoint() -> None:
    """Let this thread be held up here, if anybody wants that."""
    if _held.by is not None:
        _held.by()


def may_be_held_up() -> bool:
    """Whether checkpoints of this thread do anything."""
    return _held.by is not None


@contextmanager
def held_up_by(hook: Callable[[], None]) -> Iterator[None]:
    """Have this thread call ``hook`` at every checkpoint."""
    before, _held.by = _held.by, hook
    try:
        yield
    finally:
        _held.by = before
