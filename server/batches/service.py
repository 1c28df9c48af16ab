"""The batches of a server: made, looked at and cancelled by their owners, and done behind all other requests.

What is known of them is in the catalog; each is done by the server that took it up first, and by its next start when it
ends meanwhile: what has been answered is not asked again. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from server.batches.answers import Answers
from server.batches.batch import (
    KIND,
    OPEN,
    Batch,
    BatchStatus,
    UnknownBatchError,
    batch_of,
    cancelled,
    new_batch_id,
    with_batch,
)
from server.batches.figures import BatchFigures
from server.catalog.background import Repeated
from server.catalog.database.asking import ask
from server.catalog.database.jobs import JobTable
from server.catalog.events import Event, told
from server.catalog.files import Purpose
from server.catalog.jobs import JobQuery, JobRow
from server.errors import NotFoundError, ServerError
from server.files.checks import check_requests, request_id
from server.files.library import FileLibrary
from server.files.lines import Problems, rows
from server.fine_tuning.workplace import Workplace

logger = logging.getLogger(__name__)
POLL_SECONDS = 2.0
BUSY = (408, 429, 502, 503)  # statuses after which a request is sent again
BUSY_SECONDS = (0.5, 30.0)  # first and longest pause then
COUNT_SECONDS = 1.0  # between two notes of how far a batch is


@dataclass(frozen=True)
class Reply:
    """An answer to one request."""

    status: int
    body: Any
    request_id: str


Send = Callable[[str, bytes, str], Awaitable[Reply]]  # path, JSON body, owner


class BatchCancelledError(Exception):
    """The owner wants no more of it."""


class Batches:
    """Batches in ``table``; ``concurrency`` requests of all of them are under way at once (0: none are done)."""

    def __init__(self, table: JobTable, files: FileLibrary, workplace: Workplace, concurrency: int) -> None:
        self._table = table
        self._files = files
        self._workplace = workplace
        self._concurrency = concurrency
        self.figures = BatchFigures()
        self._send: Send | None = None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._looking = Repeated(self._look, POLL_SECONDS, "batches wait")

    def start(self, send: Send) -> None:
        """Do batches from now on, in the running loop, by sending their requests with ``send``."""
        self._send = send
        if self._concurrency:
            self._looking.start()

    async def close(self) -> None:
        """Leave what is under way to the next start."""
        await self._looking.close()
        for task in self._runs.values():
            task.cancel()
        if self._runs:
            await asyncio.wait(self._runs.values())
        self._workplace.close()

    # ---- what owners ask ----

    async def create(self, batch: Batch, owner: str) -> JobRow:
        """Keep a new batch of ``owner``."""
        status = BatchStatus.VALIDATING.value
        row = JobRow(id=new_batch_id(), kind=KIND, owner=owner, status=status, created=time.time(), record="")
        entry = told(Event("batch.create", None, {"endpoint": batch.endpoint}), row.id)
        row = await ask(self._table.add, with_batch(row, batch), (), [entry])
        self._looking.wake()
        return row

    async def get(self, id: str, owner: str | None) -> JobRow:
        """The batch of that id, if it is ``owner``'s (None: anybody's). Raises UnknownBatchError."""
        row = await ask(self._table.get, id)
        if row is None or row.kind != KIND or owner not in (None, row.owner):
            raise UnknownBatchError(f"there is no batch {id[:60]!a}; GET /v1/batches lists yours")
        return row

    async def find(self, owner: str | None, *, after: str | None, limit: int) -> list[JobRow]:
        """Batches of ``owner`` (None: all), newest first; ``after``: the last one that was seen."""
        number = (await self.get(after, owner)).number if after is not None else None
        return await ask(self._table.find, JobQuery(kind=KIND, owner=owner, after=number, limit=limit))

    async def cancel(self, id: str, owner: str | None) -> JobRow:
        """Send no more requests of a batch. Raises UnknownBatchError, InvalidRequestError."""
        await self.get(id, owner)
        row = await ask(self._table.change, id, cancelled, (), [told(Event("batch.cancel"), id)])
        assert row is not None
        self._looking.wake()
        return row

    # ---- doing them ----

    async def _look(self) -> None:
        for row in await ask(self._table.waiting, KIND, OPEN, self._workplace.id):
            if row.id not in self._runs and len(self._runs) < self._concurrency:
                self._runs[row.id] = asyncio.create_task(self._do(row))
        self.figures.counts = await ask(self._table.counts, KIND)
        self.figures.oldest = await ask(self._table.oldest, KIND, OPEN)

    async def _do(self, row: JobRow) -> None:
        try:
            await self._whole(row)
        except ServerError as error:
            logger.warning("the batch %s waits: %s", row.id, error)
            await asyncio.sleep(POLL_SECONDS)
        except Exception:
            logger.exception("the batch %s is left as it is", row.id)
            await asyncio.sleep(POLL_SECONDS)
        finally:
            del self._runs[row.id]
            self._looking.wake()

    async def _whole(self, row: JobRow) -> None:
        """A batch from where it stands to its end."""
        row = await self._change(row.id, lambda row: msgspec.structs.replace(row, place=self._workplace.id))
        source = None
        answers = await asyncio.to_thread(Answers, self._workplace.of(row.id))
        if row.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            try:
                source = await self._files.path(await self._files.get(batch_of(row).input_file, row.owner))
            except NotFoundError as error:
                gone = msgspec.structs.replace(batch_of(row), errors=((0, f"input_file_id: {error}"),))
                await self._change(row.id, lambda row: with_batch(row, gone, BatchStatus.FAILED))
                self.figures.batch_ended(BatchStatus.FAILED)
                return
        if row.status == BatchStatus.VALIDATING and source is not None:
            row = await self._validated(row, source)
            if row.status == BatchStatus.FAILED:
                self.figures.batch_ended(BatchStatus.FAILED)
                return
        end = BatchStatus.COMPLETED
        try:
            if source is not None:
                left = batch_of(row).total - len(answers.completed) - len(answers.failed)
                with self.figures.doing(row.id, left):
                    await self._send_all(row, source, answers)
        except TimeoutError:
            end = BatchStatus.EXPIRED
            self.figures.requests["expired"] += await asyncio.to_thread(_leave_out, source, answers)
        except BatchCancelledError:
            end = BatchStatus.CANCELLED
        if row.status == BatchStatus.CANCELLING:
            end = BatchStatus.CANCELLED
        await self._finish(row, answers, end)

    async def _validated(self, row: JobRow, source: Path) -> JobRow:
        """The batch once its file is read: in progress, or failed."""
        problems = Problems()
        total = await asyncio.to_thread(_check, source, batch_of(row).endpoint, problems)
        errors = tuple(problems.first)
        status = BatchStatus.FAILED if problems else BatchStatus.IN_PROGRESS

        def settle(row: JobRow) -> JobRow:
            if row.status != BatchStatus.VALIDATING:
                return row
            return with_batch(row, msgspec.structs.replace(batch_of(row), errors=errors, total=total), status)

        return await self._change(row.id, settle)

    async def _send_all(self, row: JobRow, source: Path, answers: Answers) -> None:
        """Send what has no answer yet. Raises BatchCancelledError, TimeoutError when its time is over."""
        left = batch_of(row).expires - time.time()
        under_way: set[asyncio.Task[None]] = set()
        noted = 0.0
        try:
            async with asyncio.timeout(max(left, 0)):
                for _, request in rows(source, Problems()):
                    if answers.has(id := request_id(request)):
                        continue
                    while len(under_way) >= self._concurrency:
                        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
                    if time.monotonic() - noted >= COUNT_SECONDS:
                        noted = time.monotonic()
                        await self._note(row.id, answers)
                    under_way.add(asyncio.create_task(self._one(row, id, request["body"], answers)))
                if under_way:
                    await asyncio.gather(*under_way)
                await self._note(row.id, answers)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _one(self, row: JobRow, id: str, body: Any, answers: Answers) -> None:
        """One request, as often as the server is too busy for it."""
        assert self._send is not None
        pause, longest = BUSY_SECONDS
        endpoint, raw = batch_of(row).endpoint, msgspec.json.encode(body)
        with self.figures.sending():
            while (reply := await self._send(endpoint, raw, row.owner)).status in BUSY:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            write = asyncio.to_thread(answers.add, id, reply.status, reply.body, reply.request_id)
            writing = asyncio.create_task(write)
            try:
                await asyncio.shield(writing)
            finally:
                await asyncio.wait({writing})  # or the thread would write to a file that is read already
        self.figures.answered(row.id, "completed" if reply.status < 400 else "failed")

    async def _note(self, id: str, answers: Answers) -> None:
        """Say how far a batch is. Raises BatchCancelledError."""
        completed, failed = len(answers.completed), len(answers.failed)

        def settle(row: JobRow) -> JobRow:
            return with_batch(row, msgspec.structs.replace(batch_of(row), completed=completed, failed=failed))

        if (await self._change(id, settle)).status != BatchStatus.IN_PROGRESS:
            raise BatchCancelledError

    async def _finish(self, row: JobRow, answers: Answers, end: BatchStatus) -> None:
        if end is BatchStatus.COMPLETED:
            await self._change(row.id, lambda row: with_batch(row, batch_of(row), BatchStatus.FINALIZING))
        output = await self._keep(row, answers.output, "output")
        errors = await self._keep(row, answers.errors, "error")
        counts = {"completed": len(answers.completed), "failed": len(answers.failed)}

        def settle(row: JobRow) -> JobRow:
            batch = msgspec.structs.replace(batch_of(row), output_file=output, error_file=errors, **counts)
            return with_batch(row, batch, end)

        await self._change(row.id, settle)
        self.figures.batch_ended(end)
        await asyncio.to_thread(self._workplace.remove, row.id)

    async def _keep(self, row: JobRow, path: Path, what: str) -> str | None:
        """The id of the file that has the lines in ``path``; None where there are none."""
        if not path.is_file():
            return None
        made = await self._files.add(
            path,
            owner=row.owner,
            filename=f"{row.id}_{what}.jsonl",
            purpose=Purpose.BATCH_OUTPUT,
            seconds=batch_of(row).output_seconds,
            check=False,
        )
        return made.id

    async def _change(self, id: str, mutate: Callable[[JobRow], JobRow]) -> JobRow:
        row = await ask(self._table.change, id, mutate)
        if row is None:
            raise UnknownBatchError(f"the batch {id} is gone")
        return row


def _check(source: Path, endpoint: str, problems: Problems) -> int:
    """How many requests there are; what is wrong with them is added to ``problems``."""
    total = check_requests(source, problems)
    if problems:
        return total
    for line, request in rows(source, problems):
        if request["url"] != endpoint:
            problems.add(line, f"url: the batch is for {endpoint}, and this is another")
        if request["body"].get("stream"):
            problems.add(line, "body.stream: the answers of a batch are no streams; leave it out")
    return total


def _leave_out(source: Path | None, answers: Answers) -> int:
    """Say of all requests without an answer that the time of their batch is over; returns how many there were."""
    before = len(answers.failed)
    for _, request in rows(source, Problems()) if source is not None else ():
        if not answers.has(id := request_id(request)):
            answers.add_error(
                id, "batch_expired", "this request could not be executed before the completion window ended"
            )
    return len(answers.failed) - before
