"""Responses that are made behind their requests: followed, cancelled, kept when they have ended. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from server.api.error_responses import ApiError, to_api_error

logger = logging.getLogger(__name__)
ADMITTED_SECONDS = 1.0  # in which a request is refused, or its response is queued
MOST_ENDED = 32  # of which the events are remembered
PLACE = "_place"  # in what is kept of a response that has not ended: of the server that makes it
_FAILED = b"event: response.failed\ndata: "  # how the event begins with which a stream ends that went no further
UNFINISHED = ("queued", "in_progress")
Response = dict[str, Any]
Keep = Callable[[Response], Awaitable[None]]
Snapshot = Callable[[str, dict[str, Any] | None], Response]


class BackgroundRun:
    """One response being made. ``events`` are those so far; ``snapshot`` tells of it in a state, with an error.

    ``on_end`` is called when it is made no more, whether or not that has begun.
    """

    def __init__(
        self, source: AsyncGenerator[bytes, None], snapshot: Snapshot, keep: Keep, on_end: Callable[[], None]
    ) -> None:
        self.events: list[bytes] = []
        self.admitted = asyncio.Event()  # or ended
        self.refusal: Exception | None = None
        self.unattended = False  # nobody waits for its admission any more
        self._source = source
        self._snapshot = snapshot
        self._keep = keep
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: on_end())

    @property
    def ended(self) -> bool:
        """Whether there is no more to come."""
        return self._task.done()

    def response(self) -> Response:
        """The response as it is, while it is made."""
        return self._snapshot("in_progress" if self.events else "queued", None)

    async def cancel(self, status: str = "cancelled", error: dict[str, Any] | None = None) -> None:
        """End it, unless it has ended."""
        if self._task.done():
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._keep(self._snapshot(status, error))

    async def follow(self, first: int) -> AsyncGenerator[bytes, None]:
        """The events from number ``first`` on, as they come."""
        while True:
            news, ended = self._news, self.ended
            while first < len(self.events):
                yield self.events[first]
                first += 1
            if ended:
                return
            waiting = asyncio.create_task(news.wait())
            try:
                await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()

    async def _run(self) -> None:
        try:
            async with aclosing(self._source):
                async for event in self._source:
                    self.admitted.set()
                    if event:
                        self.events.append(event)
                        self._tell()
            if self.events and self.events[-1].startswith(_FAILED):
                await self._keep(msgspec.json.decode(self.events[-1].removeprefix(_FAILED))["response"])
        except Exception as error:  # noqa: BLE001 - told to who asked, or kept for them
            if not (self.admitted.is_set() or self.unattended):
                self.refusal = error
            else:
                await self._keep(self._snapshot("failed", _error(to_api_error(error))))
        finally:
            self.admitted.set()
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _error(error: ApiError | None) -> dict[str, Any]:
    message = "the response could not be made; send the request again" if error is None else error.message
    return {"code": "server_error", "message": message}


class BackgroundResponses:
    """Those of one server, which its ``place`` tells from others, and from what it was before it was started again."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._runs: OrderedDict[str, BackgroundRun] = OrderedDict()

    async def begin(self, id: str, run: BackgroundRun) -> None:
        """Make ``run`` known, once it is admitted or has waited for a while. Raises what refuses it."""
        self._runs[id] = run
        with suppress(TimeoutError):
            async with asyncio.timeout(ADMITTED_SECONDS):
                await run.admitted.wait()
        run.unattended = True
        if run.refusal is not None:
            del self._runs[id]
            raise run.refusal
        ended = [known for known, one in self._runs.items() if one.ended]
        for known in ended[:-MOST_ENDED]:
            del self._runs[known]

    def get(self, id: str) -> BackgroundRun | None:
        """The run of a response, if it was made here and not long ago."""
        return self._runs.get(id)

    def found(self, response: Response) -> Response:
        """``response`` as it is kept, told as things stand: what a server left undone when it ended has failed."""
        place = response.pop(PLACE, None)
        if response["status"] not in UNFINISHED:
            return response
        run = self._runs.get(response["id"])
        if run is not None and not run.ended:
            return run.response()
        if place != self.place:  # another's, which may be at work
            return response
        return {**response, "status": "failed", "error": _error(None)}

    async def close(self) -> None:
        """End all that run."""
        ended = {"code": "server_error", "message": "the server ended before the response did; send the request again"}
        ends = await asyncio.gather(
            *(run.cancel("failed", ended) for run in self._runs.values()), return_exceptions=True
        )
        for error in filter(None, ends):
            logger.warning("a response that the server left undone is not kept: %s", error)
