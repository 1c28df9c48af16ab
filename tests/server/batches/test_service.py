"""Batches whose time is over, with a server that answers some requests and is silent on others."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from server.batches.batch import OPEN, Batch, BatchStatus, batch_data
from server.batches.service import Batches, Reply
from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.files import FileTable
from server.catalog.database.jobs import JobTable
from server.catalog.database.uploads import UploadTable
from server.catalog.files import Purpose
from server.catalog.jobs import JobRow
from server.catalog.store.blobs import BlobStore
from server.files.library import FileLibrary
from server.fine_tuning.workplace import Workplace

PATH = "/v1/completions"


@dataclass
class Place:
    """A server's batches in ``root``; of its answers, ``status`` by prompt, and silence where there is none."""

    root: Path
    answered: dict[str, int]
    asked: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Place]:
        database = Database(sqlite_url(self.root))
        database.migrate()
        self.files = FileLibrary(FileTable(database), UploadTable(database), BlobStore(self.root / "files"), 0)
        self.batches = Batches(JobTable(database), self.files, Workplace(self.root / "batches"), concurrency=2)
        self.batches.start(self.send)
        try:
            yield self
        finally:
            await self.batches.close()
            await self.files.close()
            database.close()

    async def send(self, path: str, body: bytes, owner: str) -> Reply:
        assert (path, owner) == (PATH, "me")
        prompt = msgspec.json.decode(body)["prompt"]
        self.asked.append(prompt)
        if prompt not in self.answered:
            await asyncio.sleep(60)
        return Reply(self.answered[prompt], {"said": prompt}, f"r-{prompt}")

    async def create(self, *prompts: str, seconds: float) -> str:
        rows = [{"custom_id": p, "method": "POST", "url": PATH, "body": {"prompt": p}} for p in prompts]
        path = self.root / "upload"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = await self.files.add(path, owner="me", filename="f", purpose=Purpose.BATCH)
        batch = Batch(endpoint=PATH, input_file=file.id, window="24h", expires=time.time() + seconds)
        return (await self.batches.create(batch, "me")).id

    async def ended(self, id: str) -> JobRow:
        async with asyncio.timeout(20):
            while (row := await self.batches.get(id, "me")).status in OPEN:
                await asyncio.sleep(0.01)
        return row

    async def lines(self, id: str) -> dict[str, Any]:
        path = await self.files.path(await self.files.get(id, "me"))
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert len({line["custom_id"] for line in found}) == len(found)
        return {line["custom_id"]: line for line in found}


def statuses(lines: dict[str, Any]) -> dict[str, int]:
    return {id: line["response"]["status_code"] for id, line in lines.items() if line["response"]}


async def check_expired(at: Place, row: JobRow) -> None:
    """What was answered is kept, and the rest is said to have expired."""
    data = batch_data(row)
    assert data["status"] == BatchStatus.EXPIRED
    assert data["expired_at"] >= data["expires_at"]
    assert data["completed_at"] is None
    assert data["request_counts"] == {"total": 6, "completed": 2, "failed": 4}
    assert statuses(await at.lines(data["output_file_id"])) == {"a": 200, "b": 200}
    errors = await at.lines(data["error_file_id"])
    assert statuses(errors) == {"c": 404}
    expired = {id: line["error"] for id, line in errors.items() if line["response"] is None}
    assert set(expired) == {"x", "y", "z"}
    assert {error["code"] for error in expired.values()} == {"batch_expired"}
    assert "before the completion window ended" in expired["x"]["message"]


ANSWERED = {"a": 200, "b": 200, "c": 404}


async def test_a_batch_that_expires_keeps_its_answers_and_says_what_has_none(tmp_path: Path) -> None:
    async with Place(tmp_path, ANSWERED).served() as at:
        row = await at.ended(await at.create("a", "x", "b", "c", "y", "z", seconds=1))
        await check_expired(at, row)
        assert at.batches.figures.requests == {"completed": 2, "failed": 1, "expired": 3}
        assert (at.batches.figures.running, at.batches.figures.waiting) == (0, 0)
        assert "z" not in at.asked  # two at a time, and both were silent
        assert not (tmp_path / "batches" / "0" / row.id).exists()
        other = await at.create("a", "b", seconds=60)  # there is room for the next one
        assert (await at.ended(other)).status == BatchStatus.COMPLETED


async def test_a_batch_expires_while_its_server_is_down(tmp_path: Path) -> None:
    place = Place(tmp_path, ANSWERED)
    async with place.served() as at:
        id = await at.create("a", "x", "b", "c", "y", "z", seconds=1)
        async with asyncio.timeout(20):
            while "y" not in at.asked or not at.batches.figures.counts:
                await asyncio.sleep(0.01)
        figures = at.batches.figures
        assert (figures.requests["completed"], figures.running, figures.waiting) == (2, 2, 1)
        assert 0 < figures.oldest_seconds < 20
        assert list(figures.counts.values()) == [1]
    await asyncio.sleep(1)
    async with place.served() as again:
        await check_expired(again, await again.ended(id))
        assert again.asked.count("a") == 1
        assert again.batches.figures.ended["expired"] == 1


async def test_a_busy_server_is_asked_again_until_the_time_is_over(tmp_path: Path) -> None:
    async with Place(tmp_path, {"a": 429}).served() as at:
        row = await at.ended(await at.create("a", seconds=0.9))
        assert row.status == BatchStatus.EXPIRED
        assert at.asked.count("a") == 2
        data = batch_data(row)
        assert data["output_file_id"] is None
        assert (await at.lines(data["error_file_id"]))["a"]["error"]["code"] == "batch_expired"
