"""A whole server in this process: uvicorn on a real socket in a thread, the engine in another, context at hand."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.api.context import ServerContext
from server.app import create_app
from server.connections import HttpServer
from server.engine.engine import Engine
from server.engine.messages import FromEngine
from server.making import MakeEngine, make_context
from server.serving import bind
from server.settings import ServerConfig
from tests.server.engine.ipc.local_client import LocalEngineClient

DEADLINE = 60.0
# "auto" would be bf16 on the CPUs that have it, and answers no longer those of an fp32 oracle.
ENGINE: dict[str, Any] = {"dtype": "float32", "kv_cache_gb": 0.02}


@dataclass(frozen=True)
class Live:
    """A running server."""

    url: str
    context: ServerContext
    loop: asyncio.AbstractEventLoop

    def http(self, **headers: str) -> httpx.Client:
        """A plain client; it asks over HTTP alone, and reads no certificates, which takes longer than most answers."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE, verify=False)

    def post(self, path: str, body: Any) -> httpx.Response:
        """One JSON request."""
        with self.http() as http:
            return http.post(path, json=body)

    def on_loop(self, call: Callable[[], Any]) -> Any:
        """Run ``call`` on the server's event loop and return what it returns."""

        async def run() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(DEADLINE)

    @property
    def stats(self) -> Any:
        """The engine's newest statistics."""
        return self.context.engine.stats

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until ``condition``; fail with ``what`` after the deadline."""
        wait_until(condition, what)

    def wait_idle(self) -> None:
        """Wait until nothing runs and no block is held by a request."""
        self.wait(lambda: not self.context.admission.active and not self.stats.num_running, "the server to be idle")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until ``condition``; fail with ``what`` after the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        threading.Event().wait(0.002)


@contextmanager
def slow_steps(milliseconds: float = 10.0) -> Iterator[None]:
    """Steps of engines in this process last longer meanwhile: a stream that has to run still does, on any machine.

    Ask for some hundred tokens, without speculation, and leave before an answer's end is waited for.
    """
    step = Engine.step

    def slow(self: Engine) -> list[FromEngine]:
        time.sleep(milliseconds / 1000)
        return step(self)

    Engine.step = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine.step = step  # type: ignore[method-assign]


def _what_runs(loops: list[asyncio.AbstractEventLoop]) -> str:
    """The stacks of all threads and of all tasks: what a server that does not stop waits for."""
    out = io.StringIO()
    for ident, frame in sys._current_frames().items():
        out.write(f"thread {ident}:\n{''.join(traceback.format_stack(frame)[-8:])}")
    for task in (task for loop in loops for task in asyncio.all_tasks(loop)):
        task.print_stack(file=out)
    return out.getvalue()


@contextmanager
def live_server(
    base: Path,
    data_dir: Path,
    *,
    adapters: Iterable[tuple[str, str]] = (),
    engine: dict[str, Any] | None = None,
    make_engine: MakeEngine = LocalEngineClient,
    **config: Any,
) -> Iterator[Live]:
    """Serve ``base`` and ``adapters`` (name, path) until the block is left; ``engine`` and ``config`` are settings."""
    common = {"model": str(base), "quantize": "none", "threads": 1, "adapter": dict(adapters)}
    settings = ServerConfig.model_validate({**common, **ENGINE, **(engine or {}), **config})
    context = make_context(settings, data_dir, make_engine)
    started: list[Exception | None] = []
    app = create_app(context, started.append)
    server, sock = HttpServer(app, settings), bind("127.0.0.1", 0)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([sock])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="live-server")
    thread.start()
    try:
        wait_until(lambda: bool(started), "the server to start")
        assert started == [None], started
        yield Live(f"http://127.0.0.1:{sock.getsockname()[1]}", context, loops[0])
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        if thread.is_alive():
            raise AssertionError(f"the server did not stop:\n{_what_runs(loops)}")
