from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from server.api.context import Admission
from server.errors import EngineUnavailableError, QueueFullError
from tests.server.api.support import BASE, STEADY, error_of
from tests.server.live import live_server, slow_steps


def test_closed_until_opened() -> None:
    admission = Admission(2)
    with pytest.raises(EngineUnavailableError, match="loading"), admission.admit(1):
        pass
    admission.open()
    with admission.admit(1):
        admission.close("shutting down")
        with pytest.raises(EngineUnavailableError, match="shutting down"), admission.admit(1):
            pass
        assert admission.active == 1
    assert admission.active == 0


def test_the_limit_counts_sequences() -> None:
    admission = Admission(3)
    admission.open()
    with admission.admit(2), admission.admit(1), pytest.raises(QueueFullError), admission.admit(1):
        pass
    with admission.admit(3):
        assert admission.active == 3


def test_an_eighth_more_is_for_who_has_little() -> None:
    admission = Admission(16)
    admission.open()
    with admission.admit(16, holder="flood"), pytest.raises(QueueFullError), admission.admit(1, holder="flood"):
        pass
    with admission.admit(16, holder="flood"), admission.admit(1, holder="quiet"), admission.admit(1, holder="quiet"):
        for holder in ("quiet", "third", None):
            with pytest.raises(QueueFullError), admission.admit(1, holder=holder):
                pass
        assert admission.active == 18
    with admission.admit(16, holder="flood"), pytest.raises(QueueFullError), admission.admit(3, holder="quiet"):
        pass


async def test_idle_waits_for_the_last() -> None:
    admission = Admission(3)
    admission.open()
    with admission.admit(1):
        waiting = asyncio.create_task(admission.idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)


def test_what_the_engine_has_ended_takes_no_place() -> None:
    admission = Admission(2)
    admission.open()
    with admission.admit(2) as places:
        for place in places:
            place.ended()
            place.ended()
        assert (admission.active, admission.unread) == (0, 2)
        with admission.admit(2):
            places[0].left()
            assert (admission.active, admission.unread) == (2, 1)
    assert (admission.active, admission.unread) == (0, 0)


async def test_idle_waits_for_readers_too() -> None:
    admission = Admission(1)
    admission.open()
    with admission.admit(1) as (place,):
        place.ended()
        waiting = asyncio.create_task(admission.idle())
        await asyncio.sleep(0)
        assert not waiting.done()
        place.left()
        await asyncio.wait_for(waiting, 5)


def test_who_has_not_read_for_longest_is_cut() -> None:
    admission = Admission(2)
    admission.open()
    cut: list[str] = []
    with ExitStack() as stack:
        for name in ("first", "second", "third"):
            for place in stack.enter_context(admission.admit(1, partial(cut.append, name))):
                place.ended()
        assert cut == ["first"]
        assert admission.unread == 2


def test_a_full_queue_is_429(base: Path, tmp_path: Path) -> None:
    body: dict[str, Any] = {"model": BASE, "prompt": "x", "max_tokens": 500, **STEADY}
    engine = {"max_num_seqs": 1}
    with live_server(base, tmp_path, engine=engine, max_waiting_requests=1) as live, ThreadPoolExecutor(2) as pool:
        with slow_steps():
            running = [pool.submit(live.post, "/v1/completions", body) for _ in range(2)]
            live.wait(lambda: live.context.admission.active == 2, "two requests")
            refused = live.post("/v1/completions", body)
            assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
            assert int(refused.headers["retry-after"]) >= 1
            client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0)
            with client, pytest.raises(openai.RateLimitError):
                client.completions.create(model=BASE, prompt="x")
        assert [future.result().status_code for future in running] == [200, 200]
        assert live.post("/v1/completions", body | {"max_tokens": 1}).status_code == 200
        # more than ever fits is refused too, not queued for ever
        error_of(live.post("/v1/completions", body | {"n": 3}), 429)


def test_no_new_requests_while_draining(base: Path, tmp_path: Path) -> None:
    body: dict[str, Any] = {"model": BASE, "prompt": "x", "max_tokens": 500, **STEADY}
    with live_server(base, tmp_path) as live, ThreadPoolExecutor(1) as pool:
        with slow_steps(), live.http() as http:
            running = pool.submit(live.post, "/v1/completions", body)
            live.wait(lambda: live.context.admission.active == 1, "a request")
            live.on_loop(lambda: live.context.admission.close("the server is shutting down"))
            refused = live.post("/v1/completions", body)
            assert error_of(refused, 503)["message"] == "the server is shutting down"
            assert refused.headers["retry-after"]
            error_of(http.get("/ready"), 503)
            error_of(http.put("/v1/adapters/x", files={"f": b"x"}), 503)
            assert http.get("/health").status_code == 200
        assert running.result().status_code == 200
