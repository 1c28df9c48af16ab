"""Asks a database from an event loop, in threads of their own: one that does not answer holds up nothing else."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from server.errors import CatalogUnavailableError

P = ParamSpec("P")
T = TypeVar("T")
ANSWER_SECONDS = 30.0  # more than a database takes to say that it cannot
_WORKERS = 4
_threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="catalog")


async def ask(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like ``asyncio.to_thread``. What takes longer than ``ANSWER_SECONDS`` is waited for no more, but not undone.

    Raises CatalogUnavailableError by then.
    """
    context = contextvars.copy_context()
    running = asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, work, *args, **kwargs))
    done, _ = await asyncio.wait({running}, timeout=ANSWER_SECONDS)
    if not done:
        running.add_done_callback(_look)
        raise CatalogUnavailableError(
            "the catalog's database does not answer; what was to be changed may be changed yet, and what is loaded is "
            "served on. Look at what is there, then try again"
        )
    return running.result()


def _look(late: asyncio.Future[T]) -> None:
    """Nobody waits for it: what it raised has been said as well as can be."""
    if not late.cancelled():
        late.exception()
