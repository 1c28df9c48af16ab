"""The end of a server's parts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from server.catalog.polling import Poller
from server.closing import close_all
from tests.server.live import live_server


async def test_one_that_fails_and_one_that_hangs_leave_no_other_open(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def fail() -> None:
        raise OSError("the disk is gone")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def end() -> None:
        await asyncio.sleep(0)
        ended.append("beside")

    stages = {"engine": fail, "jobs": hang, "beside": end}, {"last": lambda: ended.append("last")}
    await asyncio.wait_for(close_all(*stages, seconds=0.05), 10)
    assert ended == ["beside", "last"]
    assert "engine did not end in good order" in caplog.text
    assert "the disk is gone" in caplog.text
    assert "jobs did not end within 0.05 s" in caplog.text


def test_a_server_of_which_a_part_does_not_end_ends(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise OSError("the disk is gone")

    with live_server(tiny_base, tmp_path) as live:
        for part in (live.context.lifecycle, live.context.trail):
            monkeypatch.setattr(part, "close", fail)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "adapters did not end in good order",
        "events did not end in good order",
    ]
    assert not live.context.engine.ready
    with live_server(tiny_base, tmp_path, max_waiting_requests=1) as again:
        assert again.context.lifecycle.store.root == tmp_path
        assert [path.name for path in (tmp_path / "quarantine").iterdir() if path.is_dir()] == ["0"], "it was let go"


def test_a_server_ends_that_cannot_start_for_a_fault_of_ours(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr(Poller, "restore", fail)
    with pytest.raises(AssertionError, match="its log says why"), live_server(tiny_base, tmp_path):
        pass
    assert "what nobody thought of" in caplog.text
