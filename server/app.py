"""The HTTP application of one server: its routes, how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI

from adapters.errors import AdapterError
from server.api import (
    admin,
    batches,
    completions,
    error_responses,
    events,
    file_uploads,
    files,
    fine_tuning,
    health,
    invocations,
    lora_adapters,
    models,
    openapi,
    stored_completions,
    tokens,
    traffic,
)
from server.api import keys as key_routes
from server.api.anthropic_messages import routes as anthropic_messages
from server.api.anthropic_messages.errors import AnthropicErrors
from server.api.auth import check_stated
from server.api.body_limits import BodyBudget, BodyLimit, BodyRule
from server.api.context import ServerContext
from server.api.in_process import post
from server.api.middleware import RequestLog, RootPath, Unversioned, unversioned
from server.api.origins import Cors
from server.api.pooling import classify, embed, embeddings, plain, score
from server.api.responses import compaction, conversations
from server.api.responses import routes as responses
from server.api.routing import PlainPath
from server.batches.service import Send
from server.catalog.background import Background
from server.catalog.database.asking import ask
from server.catalog.polling import Poller
from server.catalog.sources import folders_of
from server.catalog.uploads import MAX_PART_BYTES
from server.catalog.watching import Watcher
from server.closing import close_all
from server.console import pages as console
from server.errors import CatalogUnavailableError, EngineStartError, ServerError

log = logging.getLogger(__name__)
OnStarted = Callable[[EngineStartError | None], None]
UPLOAD_PATH = "/v1/adapters"
FORM_BYTES = 64 * 2**10  # of a form, around the part of a file
ROUTERS = (
    completions.router,
    stored_completions.router,
    compaction.router,
    responses.router,
    conversations.router,
    anthropic_messages.router,
    embeddings.router,
    embed.router,
    classify.router,
    plain.router,
    score.router,
    models.router,
    admin.router,
    traffic.router,
    lora_adapters.router,
    key_routes.router,
    events.router,
    files.router,
    file_uploads.router,
    fine_tuning.router,
    batches.router,
    tokens.router,
    invocations.router,
    health.router,
    console.router,
)


def create_app(context: ServerContext, on_started: OnStarted | None = None) -> FastAPI:
    """The application. While it lives its engine runs; it answers 503 until base and adapters are loaded.

    ``on_started`` is called once: with None when requests are served, or with the reason why they never will be.
    """

    config = context.config
    watched = folders_of("--watch", config.watch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        poller = Poller(context.lifecycle)
        watchers = [Watcher(context.lifecycle, folder, allow_noop=config.allow_noop) for folder in watched]
        starting = Background()
        starting.spawn(_start(context, partial(post, app, context), poller, watchers, on_started))
        context.watch.start()
        try:
            yield
        finally:
            await _close(context, starting, poller, watchers)

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.context = context
    for router in ROUTERS:
        check_stated(router.routes)
        app.include_router(router)
    error_responses.install(app)
    app.add_middleware(PlainPath)
    if config.docs:
        openapi.install(app, ROUTERS, version=context.version, root_path=config.root_path)
    budget = BodyBudget(int(max(config.max_bodies_mb, config.max_body_mb) * 2**20))
    app.add_middleware(RequestLog, answered=context.metrics.answered, traces=context.traces)
    app.add_middleware(BodyLimit, rule=_body_rule(context), budget=budget, seconds=config.body_seconds)
    app.add_middleware(AnthropicErrors)
    app.add_middleware(Unversioned, words=unversioned(route for router in ROUTERS for route in router.routes))
    if config.cors_origin:
        app.add_middleware(
            Cors,
            origins=config.cors_origin,
            methods=config.cors_method,
            headers=config.cors_header,
            credentials=config.cors_credentials,
        )
    if config.root_path:
        app.add_middleware(RootPath, root_path=config.root_path)
    return app


async def _close(context: ServerContext, starting: Background, poller: Poller, watchers: Sequence[Watcher]) -> None:
    """First what makes work for others, last what others need."""
    lifecycle = context.lifecycle
    await close_all(
        {"the start": starting.close, "the watch over canaries": context.watch.close},
        {
            "batches": context.batches.close,
            "fine-tuning": context.fine_tuning.close,
            "copies to shadows": context.shadows.close,
            **{f"the watched folder {watcher.folder}": watcher.close for watcher in watchers},
        },
        {"sources of adapters": context.sources.close, "the follower of the catalog": poller.close},
        {"adapters": lifecycle.close},
        {"the engine": context.engine.close},
        {
            "keys": context.keys.close,
            "events": context.trail.close,
            "files": context.files.close,
            "responses in the background": context.background.close,
        },
        {"kept answers": context.answers.close},
        {
            "the store": lifecycle.store.close,
            "chat templates": context.text.close,
            "grammars": context.grammars.close,
            "the catalog": lifecycle.catalog.database.close,
            "traces": partial(asyncio.to_thread, context.traces.close),
        },
    )


def _body_rule(context: ServerContext) -> Callable[[str, str], BodyRule]:
    """Uploads are streamed to disk and may be large; everything else is read whole."""
    json = BodyRule(int(context.config.max_body_mb * 2**20))
    upload = BodyRule(int(context.config.max_upload_mb * 2**20), counted=False)
    file = BodyRule(int(context.config.max_file_mb * 2**20), counted=False)
    part = BodyRule(min(MAX_PART_BYTES, file.limit) + FORM_BYTES, counted=False)

    def rule(method: str, path: str) -> BodyRule:
        if method == "PUT":
            return upload if path.startswith(UPLOAD_PATH) else json
        if method == "POST" and path.rstrip("/") == files.FILES_PATH:
            return file
        if method == "POST" and file_uploads.PARTS_PATH.fullmatch(path):
            return part
        return upload if method == "POST" and path.rstrip("/") == UPLOAD_PATH else json

    return rule


async def _start(
    context: ServerContext,
    send: Send,
    poller: Poller,
    watchers: Sequence[Watcher],
    on_started: OnStarted | None,
) -> None:
    """Start the engine, load what the catalog knows and the configured adapters, then accept requests."""
    failure = None
    context.registry.unread_because = "the server is starting and has not read its catalog yet; try again"
    try:
        await ask(_prepare_catalog, context)
        context.keys.start()
        context.trail.start()
        context.files.start()
        context.answers.start()
        await context.engine.start()
        context.metrics.set_info(context.version, context.engine.info)
        await poller.restore()
        context.registry.unread_because = ""
        for name, path in context.config.adapter:
            await _load(context, name, Path(path).expanduser())
        poller.start()
        context.fine_tuning.start()
        context.batches.start(send)
        context.metrics.changes.clear()
        context.admission.open()
        for watcher in watchers:
            watcher.start()
    except CatalogUnavailableError as error:
        failure = EngineStartError(str(error))
        log.error("cannot start: %s", error)
    except EngineStartError as error:
        failure = error
        log.error("cannot start: %s", error)
    except Exception:
        failure = EngineStartError("the server cannot start; its log says why")
        log.exception("cannot start")
    if on_started is not None:
        on_started(failure)


def _prepare_catalog(context: ServerContext) -> None:
    """Before the base is loaded for minutes. Raises EngineStartError."""
    database = context.lifecycle.catalog.database
    try:
        database.migrate()
        context.keys.load()
    except CatalogUnavailableError as error:
        raise EngineStartError(f"the catalog {database.shown} cannot be used: {error.__cause__}") from error
    context.access.check()


async def _load(context: ServerContext, name: str, path: Path) -> None:
    try:
        await context.lifecycle.install_copy(name, path, allow_noop=context.config.allow_noop)
    except (AdapterError, ServerError) as error:
        raise EngineStartError(f"--adapter {name}={path}: {error}") from error
