"""Puts one server together: the HTTP application around an engine, and the process that serves it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from adapters.errors import AdapterError
from server.api import adapters, chat, completions, errors, health, models, tokens, versions
from server.api.middleware import BodyLimit, RequestLog
from server.api.parts import Parts
from server.errors import EngineStartError, EngineUnavailableError

log = logging.getLogger(__name__)

OnStarted = Callable[[EngineStartError | None], None]
UPLOAD_PATH = "/v1/adapters"
ROUTERS = (
    chat.router,
    completions.router,
    models.router,
    adapters.router,
    versions.router,
    tokens.router,
    health.router,
)


def create_app(parts: Parts, on_started: OnStarted | None = None) -> FastAPI:
    """The application. While it lives its engine runs; it answers 503 until base and adapters are loaded.

    ``on_started`` is called once: with None when requests are served, or with the reason why they never will be.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(parts, on_started))
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.wait([starting])
            await parts.lifecycle.close()
            await parts.engine.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.parts = parts
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(BodyLimit, limit=_body_limit(parts))
    app.add_middleware(RequestLog)
    return app


def _body_limit(parts: Parts) -> Callable[[str, str], int]:
    """Uploads are streamed to disk and may be large; everything else is read whole."""
    json_limit, upload_limit = int(parts.config.max_body_mb * 2**20), int(parts.config.max_upload_mb * 2**20)

    def limit(method: str, path: str) -> int:
        if method == "PUT":
            return upload_limit if path.startswith(UPLOAD_PATH) else json_limit
        upload = method == "POST" and path.rstrip("/") == UPLOAD_PATH
        return upload_limit if upload else json_limit

    return limit


async def _start(parts: Parts, on_started: OnStarted | None) -> None:
    """Start the engine and load the configured adapters, then open the doors."""
    failure = None
    try:
        await parts.engine.start()
        parts.metrics.set_info(parts.version, parts.engine.info)
        for name, path in parts.config.adapters:
            await _load(parts, name, Path(path).expanduser())
        parts.admission.open()
    except EngineStartError as error:
        failure = error
        log.error("cannot start: %s", error)
    if on_started is not None:
        on_started(failure)


async def _load(parts: Parts, name: str, path: Path) -> None:
    try:
        await parts.lifecycle.install_copy(name, path, allow_noop=parts.config.allow_noop)
    except (AdapterError, EngineUnavailableError) as error:
        raise EngineStartError(f"--adapter {name}={path}: {error}") from error
