"""Makes the parts of a server from its configuration; nothing is started yet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec

from adapters.base import DEFAULT_BASE, is_gguf, resolve_base
from adapters.errors import BaseModelError
from adapters.fingerprint import template_sha256
from server.api.admission import Admission
from server.api.parts import Parts
from server.config import EngineConfig, ServerConfig
from server.engine.client_core import ClientCore
from server.engine.process_client import ProcessEngineClient
from server.gguf_import import import_gguf
from server.lifecycle import AdapterLifecycle
from server.metrics import Metrics
from server.registry import Registry
from server.settings import DEFAULT_MODEL
from server.store import AdapterStore
from server.text import TextProcessor

log = logging.getLogger(__name__)

MakeEngine = Callable[[EngineConfig], ClientCore]


def make_parts(config: ServerConfig, data_dir: Path, make_engine: MakeEngine = ProcessEngineClient) -> Parts:
    """All parts of a server that keeps its packages in ``data_dir``. Raises BaseModelError."""
    spec = DEFAULT_BASE if config.engine.model == DEFAULT_MODEL else config.engine.model
    directory = import_gguf(Path(spec), log.info) if is_gguf(spec) else resolve_base(spec)
    name = config.served_model_name or _name(spec, directory)
    template = _template(config.chat_template)
    template_hash = template_sha256(template) if template else ""
    engine = make_engine(
        msgspec.structs.replace(config.engine, model=str(directory), chat_template_sha256=template_hash)
    )
    registry = Registry(name, config.max_candidates)
    metrics = Metrics(
        name,
        stats=lambda: engine.stats,
        restarts=lambda: engine.restarts if isinstance(engine, ProcessEngineClient) else 0,
        versions=registry.counts,
        max_adapters=config.metrics_adapters,
    )
    engine.on_step = metrics.observe_step
    text = TextProcessor.load(directory, template)
    return Parts(
        config=config,
        base_name=name,
        base_root=spec,
        engine=engine,
        registry=registry,
        lifecycle=AdapterLifecycle(registry, AdapterStore(data_dir), engine, metrics, text),
        text=text,
        metrics=metrics,
        admission=Admission(config.engine.max_num_seqs + config.max_waiting_requests),
        version=version("hotswap"),
    )


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
