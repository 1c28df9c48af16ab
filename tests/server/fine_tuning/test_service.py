"""The queue, the supervision of the trainer's process, and what a job's end leaves; the trainer takes no time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.files import FileTable
from server.catalog.database.jobs import JobTable
from server.catalog.database.uploads import UploadTable
from server.catalog.files import Purpose
from server.catalog.jobs import JobRow
from server.catalog.store.blobs import BlobStore
from server.errors import BudgetError, InvalidRequestError, QueueFullError
from server.files.library import FileLibrary
from server.fine_tuning.job import ENDED, FineTuningJob, Status, UnknownJobError, checkpoint_data, job_data, job_of
from server.fine_tuning.run import RunTools
from server.fine_tuning.service import FineTuning, Quota
from server.fine_tuning.settings import RunLimits, TunedBase
from server.fine_tuning.workplace import Workplace

SCRIPT = Path(__file__).with_name("trainer_script.py")
ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


@dataclass
class Place:
    """A server's fine-tuning in ``root``, and what it published."""

    root: Path
    service: FineTuning
    files: FileLibrary
    published: dict[str, Path] = field(default_factory=dict)
    full: str = ""  # what names must not have for there to be room

    async def upload(self, *rows: Any) -> str:
        path = self.root / "upload"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW] * 4))
        return (await self.files.add(path, owner="me", filename="f", purpose=Purpose.FINE_TUNE, check=False)).id

    async def create(self, **fields: Any) -> str:
        id = await self.upload()
        job = FineTuningJob(**{"model": "b", "name": "ft:b:o::1", "training_file": id, "seed": 1, **fields})
        return (await self.service.create(job, "me", [await self.files.get(id, "me")])).id

    async def status(self, id: str) -> str:
        return (await self.service.get(id, "me")).status

    async def until(self, condition: Callable[[JobRow], bool], id: str) -> JobRow:
        end = time.monotonic() + 120  # a job gives way to all else on the machine
        while not condition(row := await self.service.get(id, "me")):
            assert time.monotonic() < end, row
            await asyncio.sleep(0.01)
        return row

    async def ended(self, id: str) -> JobRow:
        return await self.until(lambda row: row.status in ENDED, id)

    async def steps(self, id: str) -> list[int]:
        events = await self.service.events(id, after=None, limit=500)
        return [event.data["step"] for event in reversed(events) if event.data and "train_loss" in event.data]

    def folder(self, id: str) -> Path:
        return self.root / "jobs" / "0" / id


@asynccontextmanager
async def place(root: Path, what: str = "fast", running: int = 1, **limits: Any) -> AsyncIterator[Place]:
    database = Database(sqlite_url(root))
    database.migrate()
    files = FileLibrary(FileTable(database), UploadTable(database), BlobStore(root / "files"), 0)
    published: dict[str, Path] = {}

    async def publish(name: str, package: Path) -> None:
        assert package.is_dir()
        if made.full and made.full in name:
            raise BudgetError("no room", code="storage_budget_exceeded")
        published[name] = package

    async def withdraw(name: str) -> None:
        del published[name]

    async def fetch(model: str, target: Path) -> dict[str, Any]:
        raise AssertionError(model)

    tools = RunTools(
        table=JobTable(database),
        files=files,
        workplace=Workplace(root / "jobs"),
        base=lambda: TunedBase("b", root, "none", "float32", 512),
        limits=RunLimits(**{"cores": 1, "memory_bytes": 0, "disk_bytes": 0, **limits}),
        fetch=fetch,
        publish=publish,
        withdraw=withdraw,
        common={"method": {"what": what}},
        trainer=(sys.executable, str(SCRIPT)),
    )
    service = FineTuning(tools, Quota(running, 3))
    made = Place(root, service, files, published)
    service.start()
    try:
        yield made
    finally:
        await service.close()
        await files.close()
        database.close()


async def test_a_job_goes_through_its_states_and_leaves_a_model_and_a_table(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        id = await at.create(validation_file=await at.upload())
        row = await at.ended(id)
        job = job_of(row)
        assert (row.status, job.error) == ("succeeded", None)
        assert list(at.published) == ["ft:b:o::1", "ft:b:o::1:ckpt-step-20"]
        assert [path.parent.name for path in at.published.values()] == ["output", "checkpoint-20"]
        found = [
            (one["step_number"], one["fine_tuned_model_checkpoint"], one["metrics"]) for one in checkpoint_data(row)
        ]
        assert found == [
            (40, "ft:b:o::1", {"step": 40, "train_loss": 0.025, "valid_loss": 0.5, "full_valid_loss": 0.5}),
            (20, "ft:b:o::1:ckpt-step-20", {"step": 20, "train_loss": 0.05, "valid_loss": 1, "full_valid_loss": 1}),
        ]
        assert job.trained_tokens == 400
        assert await at.steps(id) == list(range(1, 41))
        table = await at.files.get(job.result_files[0], "me")
        assert table.purpose is Purpose.RESULTS
        assert (await at.files.path(table)).read_text().splitlines()[1:3] == ["0,,,2.0,", "1,1.0,,,"]
        await at.until(lambda _: not at.folder(id).exists(), id)
        messages = [event.message for event in reversed(await at.service.events(id, after=None, limit=100))]
        assert messages[2].startswith("Files validated (4 rows; n_epochs 25, batch_size 1")
        assert messages[-1] == "The job has successfully completed"
        figures = at.service.figures
        assert (figures.ended, figures.tokens) == ({"succeeded": 1, "failed": 0, "cancelled": 0}, 400)
        assert figures.seconds > 0


async def test_a_server_ends_in_the_moment_in_which_a_job_is_made(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        await asyncio.sleep(0.05)  # it has looked, and waits
        await at.create()
        await asyncio.wait_for(at.service.close(), 5)


async def test_a_result_that_is_no_better_is_not_served(tmp_path: Path) -> None:
    async with place(tmp_path, "worse") as at:
        job = job_of(row := await at.ended(await at.create(validation_file=await at.upload())))
        assert row.status == "failed"
        assert job.error is not None
        assert job.error.code == "gate_not_passed"
        assert "is 3.0000, and that of the base 2.0000" in job.error.message
        assert at.published == {}
        assert job.result_files


async def test_checkpoints_that_are_no_better_or_cannot_be_kept_are_not_served(tmp_path: Path) -> None:
    async with place(tmp_path, "late") as at:
        at.full = "ckpt-step-20"
        row = await at.ended(id := await at.create(validation_file=await at.upload()))
        assert (row.status, list(at.published)) == ("succeeded", ["ft:b:o::1"])
        assert [one["step_number"] for one in checkpoint_data(row)] == [40]
        told = [event.message for event in await at.service.events(id, after=None, limit=9) if event.level == "warn"]
        assert told == ["The checkpoint of step 20 is not served: no room"]


async def test_jobs_wait_for_each_other_and_can_be_cancelled(tmp_path: Path) -> None:
    async with place(tmp_path, "slow") as at:
        first, second, third = [await at.create() for _ in range(3)]
        await at.until(lambda row: row.status == "running", first)
        with pytest.raises(QueueFullError, match="--fine-tuning-queue"):
            await at.create()
        await at.until(lambda row: row.status == "queued", third)
        assert (await at.service.want(second, "me", "cancel")).status == "cancelled"
        await at.until(lambda _: (at.folder(first) / "pid").is_file(), first)
        pid = int((at.folder(first) / "pid").read_text())
        await at.until(lambda _: any(run.step for _, run in at.service.figures.running), first)
        ((id, run),) = at.service.figures.running
        assert (id, run.steps, run.train_loss) == (first, 100, 1 / run.step)
        assert run.share == run.step / 100
        assert (at.folder(first) / "nice").read_text() == "19"
        if (group := at.folder(first) / "group").exists():  # by which Linux shares cores between sessions
            assert group.read_text().strip().endswith("nice 19")
        assert (await at.service.want(first, "me", "cancel")).status == "cancelled"
        await at.until(lambda row: row.status == "running", third)
        await at.until(lambda _: not at.folder(first).exists(), first)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(InvalidRequestError, match="has ended already: it was cancelled"):
            await at.service.want(first, "me", "pause")
        assert at.service.figures.ended["cancelled"] == 2
        for wish, owner in (("cancel", "other"), ("resume", "other")):
            with pytest.raises(UnknownJobError):
                await at.service.want(third, owner, wish)  # type: ignore[arg-type]


async def test_a_paused_job_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with place(tmp_path, "slow") as at:
        id = await at.create()
        while len(await at.steps(id)) < 2:
            await asyncio.sleep(0.05)
        paused = await at.service.want(id, "me", "pause")
        assert paused.status == "paused"
        assert {name: job_data(paused)[name] for name in ("status", "paused")} == {"status": "queued", "paused": True}
        assert len(await at.steps(id)) < 40
        other = await at.create()
        await at.until(lambda row: row.status == "running", other)  # its place is free
        assert (await at.service.want(id, "me", "resume")).status == "queued"
        await at.service.want(other, "me", "cancel")
        await at.until(lambda row: row.status == "running", id)
        await at.until(lambda _: (at.folder(id) / "flags").read_text() == "--quiet --resume", id)
        assert (await at.ended(id)).status == "succeeded"
        assert await at.steps(id) == list(range(1, 41))


async def test_a_job_outlives_its_server(tmp_path: Path) -> None:
    async with place(tmp_path, "slow") as at:
        id, waiting = await at.create(), await at.create()
        while len(await at.steps(id)) < 2:
            await asyncio.sleep(0.05)
    async with place(tmp_path, "fast") as again:
        assert (await again.ended(id)).status == "succeeded"
        assert await again.steps(id) == list(range(1, 41))
        told = [event.message for event in await again.service.events(id, after=None, limit=100)]
        assert "The server was started again; the job goes on from its last checkpoint" in told
        assert (await again.ended(waiting)).status == "succeeded"


@pytest.mark.parametrize(
    ("what", "limits", "code", "said"),
    [
        ("fail", {}, "training_failed", "data.path: rows are wrong"),
        ("memory", {"memory_bytes": 200 * 2**20}, "out_of_memory", "more memory than the 0.2 GB it may take"),
        ("disk", {"disk_bytes": 2**19}, "out_of_disk", "--fine-tuning-disk-gb"),
    ],
)
async def test_what_ends_a_run_is_said(tmp_path: Path, what: str, limits: dict[str, int], code: str, said: str) -> None:
    async with place(tmp_path, what, **limits) as at:
        row = await at.ended(id := await at.create())
        error = job_of(row).error
        assert error is not None
        assert (row.status, error.code) == ("failed", code)
        assert said in error.message
        assert str(tmp_path) not in error.message
        await at.until(lambda _: not at.folder(id).exists(), id)


@pytest.mark.parametrize(
    ("rows", "method", "said"),
    [
        ([{"messages": []}], "supervised", "training_file: line 1: messages: is empty"),
        (
            [ROW],
            "dpo",
            "the method dpo takes rows with input, preferred_output and non_preferred_output, not chat",
        ),
    ],
)
async def test_wrong_files_end_a_job_before_it_is_queued(
    tmp_path: Path, rows: list[Any], method: Any, said: str
) -> None:
    async with place(tmp_path) as at:
        row = await at.ended(await at.create(training_file=await at.upload(*rows), method=method))
        error = job_of(row).error
        assert error is not None
        assert (row.status, error.code, error.param) == ("failed", "invalid_training_file", "training_file")
        assert at.service.figures.ended["failed"] == 1
        assert said in error.message


async def test_a_file_that_was_deleted_ends_the_job(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        row = await at.ended(await at.create(training_file="file-gone"))
        assert job_of(row).error.param == "training_file"  # type: ignore[union-attr]


async def test_a_stream_of_events_ends_with_the_job(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        id = await at.create()
        told = [event.message async for found in at.service.follow(id) for event in found]
        assert told[0] == f"Created fine-tuning job: {id}"
        assert told[-1] == "The job has successfully completed"
        assert await at.status(id) == Status.SUCCEEDED


async def test_without_places_there_is_no_fine_tuning(tmp_path: Path) -> None:
    async with place(tmp_path, running=0) as at:
        with pytest.raises(InvalidRequestError, match="--fine-tuning-jobs 1"):
            await at.create()
