"""Makes the parts of one server from its configuration, around its engine."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from math import ceil
from pathlib import Path

import msgspec
from prometheus_client import ProcessCollector

from adapters.errors import PackageError
from adapters.package.sentence_model import SentenceModel, read_sentence_model
from bases.cache import import_gguf
from bases.errors import BaseModelError
from bases.finding import DEFAULT_BASE, is_gguf, resolve_base
from server.adapter_key import AdapterKey
from server.api.context import Admission, ServerContext
from server.api.responses.background import BackgroundResponses
from server.api.shadow import Shadows
from server.batches.service import Batches
from server.catalog.canary import CanaryControl
from server.catalog.canary_figures import CanaryFigures
from server.catalog.canary_watch import CanaryWatch
from server.catalog.catalog import Catalog
from server.catalog.database.answers import AnswerTable
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
from server.catalog.registry import Registry, Share
from server.catalog.residency import Residency
from server.catalog.sources import SourceRules, Sources, folders_of
from server.catalog.store import AdapterStore, ObjectStore
from server.catalog.store.blobs import BlobStore
from server.catalog.trail import Trail
from server.collectors import BatchCollector, DiskCollector, JobCollector, LimitCollector
from server.config import DEFAULT_MODEL, EngineConfig
from server.engine.ipc.client import ClientCore
from server.engine.ipc.process_client import ProcessEngineClient
from server.files.library import FileLibrary
from server.files.uploads import Uploads
from server.fine_tuning.making import BaseFolder, make_fine_tuning
from server.fine_tuning.workplace import Workplace
from server.metrics import Metrics
from server.settings import ServerConfig
from server.text.template_sandbox import SandboxLimits, TemplateSandbox
from server.text.tokenizer import TextProcessor
from server.traces import OtlpTraces, PassedTraces, Traces

log = logging.getLogger(__name__)
MakeEngine = Callable[[EngineConfig], ClientCore]


def make_context(config: ServerConfig, data_dir: Path, make_engine: MakeEngine = ProcessEngineClient) -> ServerContext:
    """All that makes up a server that keeps its packages in ``data_dir``. Raises BaseModelError."""
    spec, directory = _base(config.engine.model)
    name = config.served_model_name or _name(spec, directory)
    text = _text(config, directory)
    engine = make_engine(_engine_config(config.engine, directory, text, data_dir))
    registry = Registry(name, config.max_candidates, config.max_combined)
    metrics = _metrics(config, name, engine, registry)
    figures = CanaryFigures(registry)
    store = _store(config, data_dir, engine)
    database = Database(config.catalog or sqlite_url(data_dir))
    catalog = Catalog(database, lambda: engine.info.base_fingerprint, store.place)
    residency = _residency(config, engine, registry, store, metrics)
    lifecycle = AdapterLifecycle(
        registry, catalog, store, residency, observer=metrics, vocabulary=text, max_versions=config.max_versions
    )
    _connect(engine, registry, metrics, residency, figures)
    control = CanaryControl(lifecycle, figures)
    parts = UploadTable(database)
    library = _library(config, data_dir, database, parts)
    tuning = make_fine_tuning(
        config, data_dir, JobTable(database), library, base=BaseFolder(name, directory), lifecycle=lifecycle
    )
    batches = Batches(JobTable(database), library, Workplace(data_dir / "batches"), config.batch_concurrency)
    metrics.registry.register(JobCollector(name, tuning.figures))
    metrics.registry.register(BatchCollector(name, batches.figures))
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
        batches=batches,
        fine_tuning=tuning,
        answers=KeptAnswers(AnswerTable(database, config.max_answers), days=config.answer_days, server=catalog.server),
        background=BackgroundResponses(_place(data_dir)),
        text=text,
        metrics=metrics,
        admission=Admission(config.engine.max_num_seqs + config.max_waiting_requests),
        traffic=control,
        watch=CanaryWatch(registry, control),
        shadows=Shadows(registry, engine, figures, metrics, seats=config.engine.max_num_seqs),
        traces=_traces(config, name),
        version=version("hotswap"),
        sentence_model=_sentence_model(directory),
        base_dir=directory,
    )


def _engine_config(config: EngineConfig, directory: Path, text: TextProcessor, data_dir: Path) -> EngineConfig:
    return msgspec.structs.replace(
        config,
        model=str(directory),
        chat_template_sha256=text.chat_template_sha256,
        end_token_ids=text.end_token_ids(directory),
        tried_dir=str(data_dir),
    )


def _sentence_model(directory: Path) -> SentenceModel | None:
    """What sentence-transformers wrote into the base's folder. Raises BaseModelError for what cannot be read."""
    try:
        found = read_sentence_model(directory)
    except PackageError as error:
        raise BaseModelError(f"the base in {directory} cannot be read as sentence-transformers': {error}") from error
    if found is not None and found.problem:
        log.warning("the base is one of sentence-transformers', and its vectors are not served: %s", found.problem)
    return found


def _base(model: str) -> tuple[str, Path]:
    """What was asked for, and where its files are."""
    spec = DEFAULT_BASE if model == DEFAULT_MODEL else model
    return spec, import_gguf(Path(spec), log.info) if is_gguf(spec) else resolve_base(spec)


def _text(config: ServerConfig, directory: Path) -> TextProcessor:
    template = _template(config.chat_template)
    text = TextProcessor.load(directory, template, _sandbox(config), config.engine.trust_remote_code)
    log.debug("the chat template takes %s", text.template_form)  # found out now, not at the first request
    return text


def _connect(
    engine: ClientCore, registry: Registry, metrics: Metrics, residency: Residency, figures: CanaryFigures
) -> None:
    """Who is told what becomes of the engine, and what of requests."""
    registry.on_fallback = partial(_fell_back, figures, metrics)
    engine.on_step = metrics.observe_step
    engine.needed, engine.on_lost, engine.on_restart = residency.held, residency.lost, residency.engine_started
    engine.outage.on_recovery = metrics.engine_recovered


def _library(config: ServerConfig, data_dir: Path, database: Database, parts: UploadTable) -> FileLibrary:
    blobs = BlobStore(data_dir / "files", config.artifacts, dict(config.artifacts_option))
    return FileLibrary(FileTable(database), parts, blobs, ceil(config.max_files_gb * 1e9))


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


def _traces(config: ServerConfig, name: str) -> Traces:
    if not config.otlp_traces_endpoint:
        return PassedTraces()
    service = {"service.name": "hotswap", "service.version": version("hotswap"), "hotswap.base": name}
    return OtlpTraces(config.otlp_traces_endpoint, config.trace_ratio, service)


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
