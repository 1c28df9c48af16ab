"""Who answers in a conversation: one response at a time, over all servers of a catalog. Asyncio-confined."""

from __future__ import annotations

import asyncio
from types import TracebackType

from server.catalog.background import Background
from server.catalog.database.answers import AnswerTable
from server.catalog.database.asking import ask
from server.errors import LockedError


class Turn:
    """The right to answer in the conversation ``id``, until it is ended, or left as a context."""

    def __init__(self, turns: ConversationTurns, id: str) -> None:
        self._turns = turns
        self._id = id
        self._ended = False

    def end(self) -> None:
        """Others may answer now."""
        if not self._ended:
            self._ended = True
            self._turns.end(self._id)

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()


class ConversationTurns:
    """Turns of this ``server`` (its id in the catalog), which other servers see in ``table`` for as long as it runs.

    What this one has is known in memory: a turn that the table could not be told has ended holds up others alone.
    """

    def __init__(self, table: AnswerTable, server: str) -> None:
        self._table = table
        self._server = server
        self._held: set[str] = set()
        self._telling: dict[str, asyncio.Task[None]] = {}  # that a turn has ended
        self._background = Background()

    async def close(self) -> None:
        """End what is under way."""
        await self._background.settle()

    async def take(self, id: str, *, param: str) -> Turn:
        """A turn in the conversation ``id``, which the field ``param`` names. Raises LockedError."""
        if id in self._held:
            raise _locked(id, param)
        self._held.add(id)
        taking = self._background.spawn(self._take(id))
        try:
            taken = await asyncio.shield(taking)
        except BaseException:  # who asked may have left; the table may be told all the same
            self.end(id, taking)
            raise
        if not taken:
            self._held.discard(id)
            raise _locked(id, param)
        return Turn(self, id)

    def end(self, id: str, taking: asyncio.Task[bool] | None = None) -> None:
        """The turn is over, once ``taking`` it has ended."""
        self._held.discard(id)
        self._telling[id] = told = self._background.spawn(self._tell(id, taking))
        told.add_done_callback(lambda task: self._forget(id, task))

    async def _take(self, id: str) -> bool:
        if (before := self._telling.get(id)) is not None:
            await asyncio.wait({before})
        return await ask(self._table.take_turn, id, self._server)

    async def _tell(self, id: str, taking: asyncio.Task[bool] | None) -> None:
        if taking is not None:
            await asyncio.wait({taking})
        await ask(self._table.end_turn, id, self._server)

    def _forget(self, id: str, task: asyncio.Task[None]) -> None:
        if self._telling.get(id) is task:
            del self._telling[id]


def _locked(id: str, param: str) -> LockedError:
    return LockedError(
        f"Another response is being made in the conversation '{id}'. Wait until it has ended, or cancel it.",
        param=param,
        code="conversation_locked",
    )
