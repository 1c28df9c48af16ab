"""Progress of reading and tokenising in words, now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.data.survey import Progress

_SECONDS = 10.0


def spoken(tell: Callable[[str], None], seconds: float = _SECONDS) -> Progress:
    """A Progress that ``tell``s how far it is, at most once in ``seconds``; short work stays silent."""
    last = time.monotonic()

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(f"{what}: {done:,} rows" if total is None else f"{what}: {done:,} of {total:,} rows")

    return progress
