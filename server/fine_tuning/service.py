"""The fine-tuning jobs of a server: made, looked at, held and ended by their owners, and done one after another.

What is known of them is in the catalog, so that any server on it may be asked; each is done by the server that took it
up first, and by the next start of that server when it ends meanwhile. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from server.catalog.background import Background, Repeated
from server.catalog.database.asking import ask
from server.catalog.events import ACTOR, Actor, Event, told
from server.catalog.files import FileRecord
from server.catalog.jobs import JobEvent, JobQuery, JobRow
from server.errors import InvalidRequestError, QueueFullError, ServerError
from server.fine_tuning.dataset import check_files
from server.fine_tuning.figures import JobFigures
from server.fine_tuning.job import (
    BEGUN,
    KIND,
    FineTuningJob,
    JobFailedError,
    Status,
    UnknownJobError,
    job_of,
    new_job_id,
    wanting,
    with_job,
)
from server.fine_tuning.run import JobRun, RunTools
from server.fine_tuning.settings import numbers_of, resolved

logger = logging.getLogger(__name__)
POLL_SECONDS = 2.0  # between two looks at the catalog, where another server may have noted jobs
PAUSED_SECONDS = 30.0  # that whoever asks for a pause waits for it
Wanted = Literal["cancel", "pause", "resume"]


@dataclass(frozen=True)
class Quota:
    """How many jobs run at once (0: fine-tuning is off), and how many of one owner may wait, run or be paused."""

    running: int
    of_owner: int


class FineTuning:
    """Jobs in ``tools.table``. ``start`` once what they need is there."""

    def __init__(self, tools: RunTools, quota: Quota) -> None:
        self._table = tools.table
        self._tools = replace(tools, changed=self._changed)
        self._quota = quota
        self._runs: dict[str, tuple[JobRun, asyncio.Task[None]]] = {}
        self._looking = Repeated(self._look, POLL_SECONDS, "fine-tuning jobs wait")
        self._taken_up = False
        self._news = asyncio.Condition()
        self._background = Background()
        self.figures = JobFigures()

    def start(self) -> None:
        """Do jobs from now on, in the running loop."""
        if self._quota.running:
            self._looking.start()

    async def close(self) -> None:
        """Stop what runs with a checkpoint; the next start takes it up."""
        await self._looking.close()
        tasks = [task for _, task in self._runs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._background.settle()
        self._tools.workplace.close()

    # ---- what owners ask ----

    async def create(self, job: FineTuningJob, owner: str, files: list[FileRecord]) -> JobRow:
        """Keep a new job of ``owner``. Raises InvalidRequestError where fine-tuning is off, QueueFullError."""
        if not self._quota.running:
            raise InvalidRequestError(
                "fine-tuning is off on this server; its operator can start it with --fine-tuning-jobs 1",
                code="fine_tuning_disabled",
            )
        counts = await ask(self._table.counts, KIND, owner)
        if sum(counts.get(status, 0) for status in BEGUN) >= self._quota.of_owner:
            raise QueueFullError(
                f"{self._quota.of_owner} jobs of this key have not ended, the limit (--fine-tuning-queue); cancel "
                "some, or wait"
            )
        row = JobRow(
            id=new_job_id(), kind=KIND, owner=owner, status=Status.VALIDATING.value, created=time.time(), record=""
        )
        events = [JobEvent(message=f"Created fine-tuning job: {row.id}")]
        kinds = ("training", "validation")[: len(files)]
        events += [
            JobEvent(message=f"Validating {kind} file: {file.id}") for kind, file in zip(kinds, files, strict=True)
        ]
        entry = told(Event("fine_tuning.create", None, {"model": job.model, "method": job.method}), row.id)
        row = await ask(self._table.add, with_job(row, job), events, [entry])
        self._changed()
        self._looking.wake()
        return row

    async def get(self, id: str, owner: str | None) -> JobRow:
        """The job of that id, if it is ``owner``'s (None: anybody's). Raises UnknownJobError."""
        row = await ask(self._table.get, id)
        if row is None or row.kind != KIND or owner not in (None, row.owner):
            raise UnknownJobError(f"there is no fine-tuning job {id[:60]!a}; GET /v1/fine_tuning/jobs lists yours")
        return row

    async def find(
        self, owner: str | None, *, after: str | None, limit: int, accepts: Callable[[FineTuningJob], bool]
    ) -> list[JobRow]:
        """Jobs of ``owner`` (None: all) that are accepted, newest first; ``after``: the last one that was seen."""
        number = (await self.get(after, owner)).number if after is not None else None
        out: list[JobRow] = []
        while len(out) < limit:
            page = await ask(self._table.find, JobQuery(kind=KIND, owner=owner, after=number, limit=200))
            out += [row for row in page if accepts(job_of(row))]
            if len(page) < 200:
                break
            number = page[-1].number
        return out[:limit]

    async def want(self, id: str, owner: str | None, wish: Wanted) -> JobRow:
        """Let a job be cancelled, paused or resumed; a pause is waited for, for a while.

        Raises UnknownJobError, InvalidRequestError.
        """
        await self.get(id, owner)
        said = {"cancel": "cancelled", "pause": "asked to pause", "resume": "resumed: moving to queued state"}[wish]

        def settle(row: JobRow) -> JobRow:
            changed = wanting(row, wish)
            if changed.status == Status.CANCELLED:
                return with_job(changed, msgspec.structs.replace(job_of(row), finished=time.time()))
            return changed

        entry = told(Event(f"fine_tuning.{wish}"), id)
        row = await ask(self._table.change, id, settle, [JobEvent(message=f"Job {said}")], [entry])
        assert row is not None
        if row.status == Status.CANCELLED:
            self.figures.job_ended(Status.CANCELLED)
        self._changed()
        self._looking.wake()
        if id in self._runs:
            self._runs[id][0].look()
        elif row.status == Status.CANCELLED:
            await asyncio.to_thread(self._tools.workplace.remove, id)
        return await self._paused(id) if row.wish == "pause" else row

    async def _paused(self, id: str) -> JobRow:
        """The job once it has paused, or ended, or as it is after a while."""
        end = time.monotonic() + PAUSED_SECONDS
        while (row := await self.get(id, None)).wish == "pause" and time.monotonic() < end:
            await self._wait_for_news()
        return row

    async def events(self, id: str, *, after: int | None, limit: int) -> list[JobEvent]:
        """What happened in a job, newest first."""
        return await ask(self._table.events, id, after=after, limit=limit)

    async def follow(self, id: str) -> AsyncIterator[list[JobEvent]]:
        """What happened in a job, oldest first, and what happens until it ends; empty lists when nothing does."""
        last = 0
        while True:
            row = await self.get(id, None)
            found = await ask(self._table.events, id, after=last, limit=200, ascending=True)
            if found:
                last = found[-1].number
                yield found
            elif row.status not in BEGUN:
                return
            else:
                yield []
                await self._wait_for_news()

    async def made(self, name: str, owner: str) -> bool:
        """Whether ``name`` is that of a model that a job of ``owner`` made."""
        rows = await self.find(
            owner, after=None, limit=1, accepts=lambda job: name in {checkpoint.name for checkpoint in job.checkpoints}
        )
        return bool(rows)

    async def _wait_for_news(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._news:
                await self._news.wait()

    def _changed(self) -> None:
        self._background.spawn(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    # ---- doing them ----

    async def _take_up(self) -> None:
        """What ran when this server ended goes on; what is left of jobs that have ended goes."""
        place = self._tools.workplace.id
        for row in await ask(self._table.waiting, KIND, (Status.RUNNING,), place):
            await ask(
                self._table.change,
                row.id,
                lambda row: (
                    msgspec.structs.replace(row, status=Status.QUEUED.value)
                    if row.status == Status.RUNNING and row.place == place
                    else row
                ),
                [
                    JobEvent(
                        message="The server was started again; the job goes on from its last checkpoint", level="warn"
                    )
                ],
            )
        kept = {row.id for row in await ask(self._table.waiting, KIND, BEGUN, place)}
        await asyncio.to_thread(self._tools.workplace.clean, kept)

    async def _look(self) -> None:
        """Do what waits, as far as there is room."""
        if not self._taken_up:
            await self._take_up()
            self._taken_up = True
        for row in await ask(self._table.waiting, KIND, (Status.VALIDATING,), self._tools.workplace.id):
            await self._validate(row)
        for row in await ask(self._table.waiting, KIND, (Status.QUEUED,), self._tools.workplace.id):
            if len(self._runs) >= self._quota.running:
                break
            if row.id not in self._runs:
                await self._begin(row)
        self.figures.counts = await ask(self._table.counts, KIND)

    async def _validate(self, row: JobRow) -> None:
        """Check a job's files, and say what its numbers are."""
        job = job_of(row)
        try:
            paths = []
            for param, id in (("training_file", job.training_file), ("validation_file", job.validation_file)):
                if id is None:
                    continue
                try:
                    paths.append(await self._tools.files.path(await self._tools.files.get(id, row.owner)))
                except ServerError as error:
                    raise JobFailedError(f"invalid_{param}", f"{param}: {error}", param) from error
            found = await asyncio.to_thread(check_files, job, paths[0], paths[1] if len(paths) > 1 else None)
            numbers = resolved(job.hyperparameters, found.rows, job.method)
            job, status = msgspec.structs.replace(job, hyperparameters=numbers), Status.QUEUED
            shown = ", ".join(f"{name} {value}" for name, value in numbers_of(numbers).items())
            events = [JobEvent(message=f"Files validated ({found.rows} rows; {shown}), moving job to queued state")]
        except JobFailedError as error:
            status = Status.FAILED
            job = msgspec.structs.replace(job, error=error.failure, finished=time.time())
            events = [
                JobEvent(message=f"The job failed: {error}", level="error", data=msgspec.to_builtins(error.failure))
            ]
        settled = await self._settle(row.id, Status.VALIDATING, lambda row: with_job(row, job, status), events)
        if settled is not None and status is Status.FAILED:
            self.figures.job_ended(status)

    async def _begin(self, row: JobRow) -> None:
        place = self._tools.workplace.id

        def claim(row: JobRow) -> JobRow:
            job = job_of(row)
            began = msgspec.structs.replace(job, began=job.began or time.time())
            return msgspec.structs.replace(with_job(row, began, Status.RUNNING), place=place, wish="")

        taken = await self._settle(row.id, Status.QUEUED, claim, [JobEvent(message="Fine-tuning job started")])
        if taken is not None:
            run = JobRun(taken, self._tools, self.figures)
            self._runs[row.id] = (run, self._background_task(run))

    def _background_task(self, run: JobRun) -> asyncio.Task[None]:
        async def work() -> None:
            ACTOR.set(Actor(name=f"job {run.id}"))
            self.figures.begin(run.id)
            try:
                await run.run()
            except Exception:
                logger.exception("the fine-tuning job %s is left as it is", run.id)
            finally:
                self.figures.end(run.id)
                del self._runs[run.id]
                self._changed()
                self._looking.wake()

        return asyncio.create_task(work())

    async def _settle(
        self, id: str, status: Status, mutate: Callable[[JobRow], JobRow], events: list[JobEvent]
    ) -> JobRow | None:
        """Change a job that is in ``status``; None where it is not any more."""

        def guarded(row: JobRow) -> JobRow:
            if row.status != status or row.place not in ("", self._tools.workplace.id):
                raise UnknownJobError("taken by another")
            return mutate(row)

        try:
            row = await ask(self._table.change, id, guarded, events)
        except UnknownJobError:
            return None
        self._changed()
        return row
