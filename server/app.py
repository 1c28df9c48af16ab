"""Puts one server together from its configuration: its context, and the HTTP application around its engine."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from math import ceil
from pathlib import Path

import msgspec
from fastapi import FastAPI
from prometheus_client import ProcessCollector

from adapters.errors import AdapterError
from bases.cache import import_gguf
from bases.errors import BaseModelError
from bases.finding import DEFAULT_BASE, is_gguf, resolve_base
from server.adapter_key import AdapterKey
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
from server.api.context import Admission, ServerContext
from server.api.in_process import post
from server.api.middleware import RequestLog, RootPath, Unversioned, unversioned
from server.api.origins import Cors
from server.api.pooling import classify, embeddings, plain, score
from server.api.responses import compaction
from server.api.responses import routes as responses
from server.api.responses.background import BackgroundResponses
from server.api.routing import PlainPath
from server.api.shadow import Shadows
from server.batches.service import Batches, Send
from server.catalog.background import Background
from server.catalog.canary import CanaryControl
from server.catalog.canary_figures import CanaryFigures
from server.catalog.canary_watch import CanaryWatch
from server.catalog.catalog import Catalog
from server.catalog.database.answers import AnswerTable
from server.catalog.database.asking import ask
from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.events import EventTable
from server.catalog.database.files import FileTable
from server.catalog.database.jobs import JobTable
from server.catalog.database.keys import KeyTable
from server.catalog.database.uploads import UploadTable
from server.catalog.kept_answers import KeptAnswers
from server.catalog.key_manager import KeyManager
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.loading import PackageLoader
from server.catalog.memory_ledger import Budget
from server.catalog.polling import Poller
from server.catalog.registry import Registry, Share
from server.catalog.residency import Residency
from server.catalog.sources import SourceRules, Sources, folders_of
from server.catalog.store import AdapterStore, ObjectStore
from server.catalog.store.blobs import BlobStore
from server.catalog.trail import Trail
from server.catalog.uploads import MAX_PART_BYTES
from server.catalog.watching import Watcher
from server.closing import close_all
from server.collectors import DiskCollector, JobCollector, LimitCollector
from server.config import DEFAULT_MODEL, EngineConfig
from server.console import pages as console
from server.engine.ipc.client import ClientCore
from server.engine.ipc.process_client import ProcessEngineClient
from server.errors import CatalogUnavailableError, EngineStartError, ServerError
from server.files.library import FileLibrary
from server.files.uploads import Uploads
from server.fine_tuning.making import BaseFolder, make_fine_tuning
from server.fine_tuning.workplace import Workplace
from server.metrics import Metrics
from server.settings import ServerConfig
from server.text.template_sandbox import SandboxLimits, TemplateSandbox
from server.text.tokenizer import TextProcessor

log = logging.getLogger(__name__)
MakeEngine = Callable[[EngineConfig], ClientCore]


def make_context(config: ServerConfig, data_dir: Path, make_engine: MakeEngine = ProcessEngineClient) -> ServerContext:
    """All that makes up a server that keeps its packages in ``data_dir``. Raises BaseModelError."""
    spec = DEFAULT_BASE if config.engine.model == DEFAULT_MODEL else config.engine.model
    directory = import_gguf(Path(spec), log.info) if is_gguf(spec) else resolve_base(spec)
    name = config.served_model_name or _name(spec, directory)
    text = TextProcessor.load(
        directory, _template(config.chat_template), _sandbox(config), config.engine.trust_remote_code
    )
    log.debug("the chat template takes %s", text.template_form)  # found out now, not at the first request
    engine = make_engine(
        msgspec.structs.replace(
            config.engine,
            model=str(directory),
            chat_template_sha256=text.chat_template_sha256,
            end_token_ids=text.end_token_ids(directory),
            tried_dir=str(data_dir),
        )
    )
    registry = Registry(name, config.max_candidates, config.max_combined)
    metrics = _metrics(config, name, engine, registry)
    figures = CanaryFigures(registry)
    registry.on_fallback = partial(_fell_back, figures, metrics)
    store = _store(config, data_dir, engine)
    database = Database(config.catalog or sqlite_url(data_dir))
    catalog = Catalog(database, lambda: engine.info.base_fingerprint, store.place)
    residency = _residency(config, engine, registry, store, metrics)
    lifecycle = AdapterLifecycle(
        registry, catalog, store, residency, observer=metrics, vocabulary=text, max_versions=config.max_versions
    )
    engine.on_step = metrics.observe_step
    engine.needed, engine.on_lost, engine.on_restart = residency.held, residency.lost, residency.engine_started
    engine.outage.on_recovery = metrics.engine_recovered
    control = CanaryControl(lifecycle, figures)
    parts = UploadTable(database)
    library = FileLibrary(
        FileTable(database),
        parts,
        BlobStore(data_dir / "files", config.artifacts, dict(config.artifacts_option)),
        ceil(config.max_files_gb * 1e9),
    )
    tuning = make_fine_tuning(
        config, data_dir, JobTable(database), library, base=BaseFolder(name, directory), lifecycle=lifecycle
    )
    metrics.registry.register(JobCollector(name, tuning.figures))
    _watch_machine(metrics, config, name, engine, data_dir)
    return ServerContext(
        config=config,
        base_name=name,
        base_root=spec,
        engine=engine,
        registry=registry,
        lifecycle=lifecycle,
        sources=Sources(store, _source_rules(config)),
        keys=KeyManager(KeyTable(database), guarded=not config.admin_keys),
        trail=Trail(EventTable(database), days=config.event_days),
        files=library,
        uploads=Uploads(parts, library, int(config.max_file_mb * 2**20)),
        batches=Batches(JobTable(database), library, Workplace(data_dir / "batches"), config.batch_concurrency),
        fine_tuning=tuning,
        answers=KeptAnswers(AnswerTable(database, config.max_answers), days=config.answer_days),
        background=BackgroundResponses(_place(data_dir)),
        text=text,
        metrics=metrics,
        admission=Admission(config.engine.max_num_seqs + config.max_waiting_requests),
        traffic=control,
        watch=CanaryWatch(registry, control),
        shadows=Shadows(registry, engine, figures, metrics, seats=config.engine.max_num_seqs),
        version=version("hotswap"),
    )


def _metrics(config: ServerConfig, name: str, engine: ClientCore, registry: Registry) -> Metrics:
    return Metrics(
        name,
        stats=lambda: engine.stats,
        restarts=lambda: engine.restarts,
        resumed=lambda: engine.resumed,
        versions=registry.counts,
        stored=registry.stored,
        shares=partial(_shares, registry),
        max_adapters=config.metrics_adapters,
        vllm=config.vllm_metrics,
    )


def _watch_machine(metrics: Metrics, config: ServerConfig, name: str, engine: ClientCore, data_dir: Path) -> None:
    """What the server and its engine take of the machine, and how much they may."""
    weights = {"device": ceil(config.engine.max_adapter_gb * 1e9), "store": ceil(config.max_stored_gb * 1e9)}
    most = config.engine.max_num_seqs + config.max_waiting_requests
    metrics.registry.register(DiskCollector(name, data_dir))
    metrics.registry.register(LimitCollector(name, requests=most, adapter_bytes=weights))
    ProcessCollector(registry=metrics.registry)
    ProcessCollector("hotswap_engine", lambda: engine.pid or "none", registry=metrics.registry)


def _place(data_dir: Path) -> str:
    """What tells the server of a directory from others that share its catalog."""
    return hashlib.sha256(f"{socket.gethostname()}:{data_dir.resolve()}".encode()).hexdigest()[:32]


def _store(config: ServerConfig, data_dir: Path, engine: ClientCore) -> AdapterStore:
    return AdapterStore(
        data_dir,
        max_bytes=ceil(config.max_stored_gb * 1e9),
        artifacts=ObjectStore(config.artifacts, dict(config.artifacts_option)) if config.artifacts else None,
        max_cached_bytes=ceil(config.max_cached_gb * 1e9),
        in_use=engine.packages,
    )


def _residency(
    config: ServerConfig, engine: ClientCore, registry: Registry, store: AdapterStore, metrics: Metrics
) -> Residency:
    return Residency(
        engine,
        registry,
        Budget(ceil(config.engine.max_adapter_gb * 1e9), config.max_resident),
        metrics,
        rule=registry.settings,
        load=PackageLoader(store, engine),
        eager=config.load_adapters == "eager",
        max_combinations=config.max_combinations,
    )


def _source_rules(config: ServerConfig) -> SourceRules:
    return SourceRules(
        roots=folders_of("--adapter-root", config.adapter_root),
        hosts=config.source_host,
        url_prefixes=config.source_url_prefix,
        options=dict(config.artifacts_option),
        max_bytes=int(config.max_upload_mb * 2**20),
    )


def _shares(registry: Registry) -> Iterator[Share]:
    """All that share requests to a name. May be asked in any thread."""
    return (share for name in registry.split_names() for share in registry.shares(name))


def _fell_back(figures: CanaryFigures, metrics: Metrics, key: AdapterKey) -> None:
    figures.fell_back(key)
    metrics.fell_back(key)


def _name(spec: str, directory: Path) -> str:
    """What clients call the base unless the operator says otherwise."""
    if is_gguf(spec):
        return Path(spec).stem
    return directory.resolve().name if Path(spec).expanduser().is_dir() else spec


def _template(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BaseModelError(f"--chat-template {path} cannot be read as text") from error


def _sandbox(config: ServerConfig) -> TemplateSandbox | None:
    """What renders chat templates of adapters; None where the operator does not allow them."""
    if not config.engine.adapter_templates:
        return None
    limits = SandboxLimits(
        seconds=config.adapter_template_seconds,
        megabytes=config.adapter_template_mb,
        max_chars=int(config.max_body_mb * 2**20),
    )
    return TemplateSandbox(limits)


OnStarted = Callable[[EngineStartError | None], None]
UPLOAD_PATH = "/v1/adapters"
FORM_BYTES = 64 * 2**10  # of a form, around the part of a file
ROUTERS = (
    completions.router,
    stored_completions.router,
    compaction.router,
    responses.router,
    anthropic_messages.router,
    embeddings.router,
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
    app.add_middleware(RequestLog, answered=context.metrics.answered)
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
