"""Ends the parts of a server: one that cannot be ended, or takes too long, leaves no other open. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

logger = logging.getLogger(__name__)
PART_SECONDS = 15.0  # a trainer has ten of them for its checkpoint
Close = Callable[[], Awaitable[None] | None]


async def close_all(*stages: Mapping[str, Close], seconds: float = PART_SECONDS) -> None:
    """Close the parts of the first stage, named as the log is to name them, side by side; then those of the next."""
    for stage in stages:
        await asyncio.gather(*(_close(part, close, seconds) for part, close in stage.items()))


async def _close(part: str, close: Close, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            if (closing := close()) is not None:
                await closing
    except TimeoutError:
        logger.error("%s did not end within %g s, and is left as it is", part, seconds)
    except Exception:
        logger.exception("%s did not end in good order", part)
