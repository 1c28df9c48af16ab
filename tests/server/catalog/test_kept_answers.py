"""Keeping answers together, whatever becomes of that."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.catalog.answers import AnswerKind, AnswerRecord
from server.catalog.catalog import Catalog
from server.catalog.database.answers import AnswerTable
from server.catalog.database.database import Database, sqlite_url
from server.catalog.kept_answers import KeptAnswers
from server.errors import LockedError


async def test_who_keeps_an_answer_is_told_of_any_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    table = AnswerTable(database, 10)
    kept = KeptAnswers(table, days=1, server="s")

    def fail(*_: object) -> None:
        raise RuntimeError("no more threads")

    common: dict[str, Any] = {
        "kind": AnswerKind.RESPONSE,
        "owner": "me",
        "model": "m",
        "created": 1.0,
        "input": "[]",
        "body": "{}",
    }
    records = [AnswerRecord(id=f"resp_{i}", **common) for i in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(table, "save", fail)
        for record in records:
            with pytest.raises(RuntimeError, match="no more threads"):
                await asyncio.wait_for(kept.save(record), 5)
    await kept.save(records[0])
    assert (await kept.get("resp_a", AnswerKind.RESPONSE, "me")).owner == "me"
    await asyncio.wait_for(kept.close(), 5)
    database.close()


async def test_what_was_deleted_stays_so(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    table = AnswerTable(database)
    kept = KeptAnswers(table, days=0, server="s")
    common: dict[str, Any] = {"owner": "me", "model": "", "created": 1.0, "input": "[]", "body": "{}"}
    made = AnswerRecord(id="conv_a", kind=AnswerKind.CONVERSATION, **common)
    item = AnswerRecord(id="msg_a", kind=AnswerKind.ITEM, previous="conv_a", **common)
    await kept.save(made, item)  # at once
    known = await kept.get("conv_a", AnswerKind.CONVERSATION, "me")
    await kept.get("msg_a", AnswerKind.ITEM, "me")
    await kept.forget("conv_a")
    await kept.save(known, item)  # as who began before it was deleted
    assert table.get("conv_a", 0.0) is table.get("msg_a", 0.0) is None
    await kept.close()
    database.close()


async def test_servers_of_one_catalog_take_turns_in_a_conversation(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    table = AnswerTable(database)
    catalogs = [Catalog(database, lambda: "base", lambda _: tmp_path) for _ in range(2)]
    one, other = (KeptAnswers(table, days=0, server=catalog.server) for catalog in catalogs)
    for catalog in catalogs:
        catalog.beat()
    await one.save(
        AnswerRecord(id="conv_a", kind=AnswerKind.CONVERSATION, owner="", model="", created=1.0, input="[]", body="{}")
    )
    with await one.turns.take("conv_a", param="conversation"):
        for asked in one, other:
            with pytest.raises(LockedError):
                await asked.turns.take("conv_a", param="conversation")
    with await one.turns.take("conv_a", param="conversation"):  # though that the last is over may not be written yet
        pass
    await one.turns.close()
    left = asyncio.create_task(other.turns.take("conv_a", param="conversation"))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait({left})
    await other.turns.close()
    await one.turns.take("conv_a", param="conversation")  # and never ends it: it is killed
    with pytest.raises(LockedError):
        await other.turns.take("conv_a", param="conversation")
    catalogs[1].forget_servers([catalogs[0].server])
    await other.turns.take("conv_a", param="conversation")
    database.close()
