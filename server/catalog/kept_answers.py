"""The answers that a server keeps, for their owners and for a time. Asyncio-confined."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

from server.catalog.answers import AnswerKind, AnswerQuery, AnswerRecord, is_conversation
from server.catalog.background import Background, Repeated
from server.catalog.conversation_turns import ConversationTurns
from server.catalog.database.answers import AnswerTable
from server.catalog.database.asking import ask
from server.errors import NotFoundError

DAY_SECONDS = 86400.0
EXPIRE_SECONDS = 600.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of answers made here
MAX_CHAIN = 1024  # answers that one goes on from


class UnknownResponseError(NotFoundError):
    """No response of that id, or none of this owner's."""

    param = "response_id"
    code = "response_not_found"


class UnknownCompletionError(NotFoundError):
    """No stored chat completion of that id, or none of this owner's."""

    param = "completion_id"
    code = "completion_not_found"


class UnknownConversationError(NotFoundError):
    """No conversation of that id, or none of this owner's."""

    param = "conversation_id"
    code = "conversation_not_found"


class UnknownItemError(NotFoundError):
    """A conversation has no item of that id."""

    param = "item_id"
    code = "item_not_found"


class PreviousResponseError(NotFoundError):
    """What a response is to go on from is not there, or not whole."""

    param = "previous_response_id"
    code = "previous_response_not_found"


_UNKNOWN: dict[AnswerKind, tuple[type[NotFoundError], str]] = {
    AnswerKind.RESPONSE: (UnknownResponseError, "Response"),
    AnswerKind.CHAT: (UnknownCompletionError, "Chat completion"),
    AnswerKind.CONVERSATION: (UnknownConversationError, "Conversation"),
    AnswerKind.ITEM: (UnknownItemError, "Item"),
}


class KeptAnswers:
    """Answers in ``table``, kept for ``days`` (0: for ever). What is kept together is written together.

    ``server`` is the id by which the catalog knows this server.
    """

    def __init__(self, table: AnswerTable, *, days: float, server: str) -> None:
        self.turns = ConversationTurns(table, server)
        self._table = table
        self._seconds = days * DAY_SECONDS
        self._waiting: list[tuple[Sequence[AnswerRecord], asyncio.Future[None]]] = []
        self._refreshed: dict[str, None] = {}
        self._writing: asyncio.Task[None] | None = None
        self._background = Background()
        self._expiring = Repeated(self._expire, EXPIRE_SECONDS, "answers that have expired stay")

    def start(self) -> None:
        """Forget what has expired from now on, in the running loop."""
        self._expiring.start()

    async def close(self) -> None:
        """End what is under way."""
        await self._expiring.close()
        await self.turns.close()
        await self._background.settle()

    @staticmethod
    def now() -> float:
        """The time by which answers expire."""
        return time.time()

    def expiry(self) -> float | None:
        """Until when an answer is kept that is kept now."""
        return time.time() + self._seconds if self._seconds else None

    async def save(self, *records: AnswerRecord, chain: Sequence[AnswerRecord] = ()) -> None:
        """Keep ``records``, new or changed, in their order; what they go on from, the ``chain``, is kept as long.

        Raises CatalogUnavailableError, or StoreFullError; nothing was kept then.
        """
        kept = asyncio.get_running_loop().create_future()
        self._waiting.append((records, kept))
        soon = time.time() + self._seconds / 2
        old = (one.id for one in chain if one.expires is not None and one.expires < soon)
        self._refreshed |= dict.fromkeys(old)
        if self._writing is None or self._writing.done():
            self._writing = self._background.spawn(self._write())
        await kept

    async def _write(self) -> None:
        """Write what waits, and what comes meanwhile."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            refreshed, self._refreshed = list(self._refreshed), {}
            failure: Exception | None = None
            try:
                records = [record for together, _ in batch for record in together]
                await ask(self._table.save, records, refreshed, self.expiry())
            except Exception as error:  # noqa: BLE001 - told to those who wait for it
                failure = error
            for _, kept in batch:
                if kept.done():
                    continue
                if failure is None:
                    kept.set_result(None)
                else:
                    kept.set_exception(failure)

    async def get(self, id: str, kind: AnswerKind, owner: str) -> AnswerRecord:
        """An answer of ``owner``'s. Raises NotFoundError, of its ``kind``."""
        record = await ask(self._table.get, id, time.time()) if _ID.fullmatch(id) else None
        if record is None or record.owner != owner or record.kind is not kind:
            unknown, noun = _UNKNOWN[kind]
            raise unknown(f"{noun} with id '{id[:80]}' not found.")
        return record

    async def chain(self, id: str, owner: str) -> list[AnswerRecord]:
        """The response ``id`` of ``owner``'s and all it goes on from, oldest first: at last maybe a conversation.

        Raises PreviousResponseError.
        """
        found = await ask(self._table.chain, id, time.time(), MAX_CHAIN) if _ID.fullmatch(id) else []
        if not found or found[0].owner != owner or found[0].kind is not AnswerKind.RESPONSE:
            raise PreviousResponseError(f"Response with id '{id[:80]}' not found.")
        if before := found[-1].previous:
            noun = "Conversation" if is_conversation(before) else "Response"
            raise PreviousResponseError(
                f"{noun} with id '{before}' not found, from which '{id[:80]}' goes on; send the whole conversation in "
                "`input`"
            )
        return found[::-1]

    async def find(self, query: AnswerQuery) -> list[AnswerRecord]:
        """What is asked for."""
        if query.model is not None and "\0" in query.model:
            return []
        return await ask(self._table.find, query)

    async def forget(self, id: str) -> None:
        """Keep an answer no longer."""
        await ask(self._table.delete, id)

    async def _expire(self) -> None:
        await ask(self._table.delete_expired, time.time())
