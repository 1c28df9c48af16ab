"""The child process from below: what it says to bad settings, how it ends, and that a slow reader stalls nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from server.engine.engine_loop import Inbox, Progress
from server.engine.ipc.buffers import Outbox
from server.engine.ipc.process import beat, drain, feed, serve
from server.engine.ipc.process_client import EngineChild
from server.engine.ipc.transport import decode_from_engine, encode, frame, recv_frame
from server.engine.ipc.watchdog import BEAT_SECONDS
from server.engine.messages import (
    Abort,
    EngineFailed,
    EngineInfo,
    EngineStats,
    Heartbeat,
    RequestOutput,
    Shutdown,
    StepOutputs,
)
from tests.server.engine.ipc.clients import config_for, until

DEADLINE = 120.0

ORPHAN_MAKER = """
import asyncio, sys, msgspec
from server.config import EngineConfig
from server.engine.ipc.process_client import ProcessEngineClient

async def main():
    client = ProcessEngineClient(msgspec.json.decode(sys.argv[1], type=EngineConfig))
    await client.start()
    print(client.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "m", "quantize": "int3"}, "--quantize must be one of auto, nf4, nf4-dq, "),
        ({"quantize": "nf4"}, "default is not a model directory"),
        ({"model": "m", "threads": "many"}, "Expected `int`, got `str`"),
    ],
)
def test_bad_settings_are_answered_in_words(settings: dict[str, object], reason: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame(json.dumps(settings).encode()))
        assert serve(theirs) == 1
        theirs.shutdown(socket.SHUT_RDWR)
        payload = recv_frame(ours)
    assert payload is not None
    message = decode_from_engine(payload)
    assert isinstance(message, EngineFailed)
    assert reason in message.message


def test_a_parent_that_leaves_before_settings_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        assert serve(theirs) == 0


def test_a_reader_that_stalls_does_not_stall_the_step_and_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    outbox = Outbox()
    writer = threading.Thread(target=drain, args=(theirs, outbox))
    writer.start()
    count = 20_000
    got: list[int] = []
    for token in range(count):  # far more than the socket holds, and nobody reads yet
        outbox.put(StepOutputs([RequestOutput(request_id="r", token_ids=[token])], EngineStats(steps=token)))
    assert len(outbox) < 100
    outbox.close()
    with ours, theirs:
        while len(got) < count:
            payload = recv_frame(ours)
            assert payload is not None
            message = decode_from_engine(payload)
            assert isinstance(message, StepOutputs)
            got += message.outputs[0].token_ids
        writer.join(DEADLINE)
    assert got == list(range(count))


def test_writing_ends_when_the_parent_has_gone() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    outbox = Outbox()
    outbox.put(StepOutputs([], EngineStats()))
    with theirs:
        drain(theirs, outbox)  # returns, and raises nothing


@pytest.mark.parametrize("ending", [b"", b"\x00\x00", frame(b"\xc1")])
def test_reading_ends_in_a_shutdown_however_the_connection_ends(ending: bytes) -> None:
    ours, theirs = socket.socketpair()
    inbox: Inbox = queue.SimpleQueue()
    finished = threading.Event()
    finished.set()
    ours.sendall(encode(Abort("r")) + ending)
    ours.close()
    with theirs:
        feed(theirs, inbox, finished)
    assert [inbox.get_nowait() for _ in range(inbox.qsize())] == [Abort("r"), Shutdown()]


def test_beats_do_not_pile_up_behind_a_reader_that_stalls() -> None:
    outbox, finished = Outbox(), threading.Event()
    heart = threading.Thread(target=beat, args=(Progress(), outbox, finished))
    heart.start()
    first = outbox.take()
    outbox.put(StepOutputs([], EngineStats()))
    finished.wait(3 * BEAT_SECONDS)
    finished.set()
    heart.join()
    assert first == [Heartbeat()]
    assert outbox.take() == [StepOutputs([], EngineStats())]


async def test_a_child_whose_parent_hangs_up_while_it_loads_ends(tiny_base: Path) -> None:
    child = await EngineChild.spawn(config_for(tiny_base))
    await child.hang_up()
    assert "status" in await child.end(grace=DEADLINE)


async def test_shutdown_ends_the_child_with_status_0(tiny_base: Path) -> None:
    child = await EngineChild.spawn(config_for(tiny_base))
    seen = []
    async for message in child.messages():
        if isinstance(message, EngineInfo):
            child.send(Shutdown())
        if not isinstance(message, Heartbeat):
            seen.append(type(message))
    assert seen == [EngineInfo]
    assert "status 0" in await child.end(grace=DEADLINE)
    await child.hang_up()


def test_a_parent_that_is_killed_takes_the_child_with_it(tiny_base: Path) -> None:
    settings = msgspec.json.encode(config_for(tiny_base)).decode()
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN_MAKER, settings], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with contextlib.closing(parent.stdout):
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        wait_gone(pid)


async def test_a_child_that_will_not_end_is_killed(tiny_base: Path) -> None:
    child = await EngineChild.spawn(config_for(tiny_base))
    os.kill(child.pid, signal.SIGSTOP)
    end = asyncio.create_task(child.end(grace=0.01))
    await asyncio.sleep(0)
    child.send(Abort("too late"))  # who sends cannot know yet
    ending = await end
    child.send(Abort("too late"))
    assert ending == "the engine process was killed: it did not end by itself within 0.01 s"
    await child.hang_up()
    await until(lambda: not psutil.pid_exists(child.pid))
    await asyncio.sleep(0)
