"""Puts the fine-tuning of one server together from its configuration."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from server.adapter_key import AdapterKey
from server.catalog.database.jobs import JobTable
from server.catalog.lifecycle import AdapterLifecycle
from server.engine.ipc.client import EngineClient
from server.errors import EngineStartError, UnknownModelError
from server.files.library import FileLibrary
from server.fine_tuning.dataset import copy_package
from server.fine_tuning.job import JobFailedError
from server.fine_tuning.run import RunTools
from server.fine_tuning.service import FineTuning, Quota
from server.fine_tuning.settings import RunLimits, TunedBase
from server.fine_tuning.workplace import Workplace
from server.setting_kinds import read_text
from server.settings import ServerConfig


@dataclass(frozen=True)
class BaseFolder:
    """The base: its name for clients, and where it is."""

    name: str
    folder: Path


def make_fine_tuning(
    config: ServerConfig,
    data_dir: Path,
    table: JobTable,
    files: FileLibrary,
    *,
    base: BaseFolder,
    lifecycle: AdapterLifecycle,
) -> FineTuning:
    """The jobs of a server. Raises EngineStartError."""
    try:
        workplace = Workplace(data_dir / "jobs")
        template = read_text(config.chat_template) if config.chat_template else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EngineStartError(f"cannot keep jobs in {data_dir}: {reason}; choose another --data-dir") from error
    tools = RunTools(
        table=table,
        files=files,
        workplace=workplace,
        base=partial(_base, config, base, lifecycle.residency.engine, template),
        limits=_limits(config),
        fetch=partial(_fetch, lifecycle),
        publish=partial(_publish, lifecycle),
        withdraw=partial(_withdraw, lifecycle),
        common=_common(config.fine_tuning_config),
        gated=config.fine_tuning_gate == "better",
    )
    return FineTuning(tools, Quota(config.fine_tuning_jobs, config.fine_tuning_queue))


def _base(config: ServerConfig, base: BaseFolder, engine: EngineClient, template: str | None) -> TunedBase:
    """As it is served: once the engine runs."""
    info = engine.info
    return TunedBase(
        name=base.name,
        folder=base.folder,
        quantization=info.quantization,
        dtype=info.dtype,
        max_model_len=info.max_model_len,
        device=info.device,
        template=template,
        trust_remote_code=config.engine.trust_remote_code,
    )


def _limits(config: ServerConfig) -> RunLimits:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return RunLimits(
        cores=min(config.fine_tuning_cores or max(count // 2, 1), count),
        memory_bytes=int(config.fine_tuning_memory_gb * 1e9),
        disk_bytes=int(config.fine_tuning_disk_gb * 1e9),
    )


def _common(path: str) -> dict[str, Any]:
    """What the operator wants all runs to begin with; that it is right the trainer says."""
    if not path:
        return {}
    try:
        found = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise EngineStartError(f"--fine-tuning-config {path}: it cannot be read as YAML") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise EngineStartError(f"--fine-tuning-config {path}: it must hold settings, as method: {{type: lora, r: 16}}")
    sections = {name: value for name, value in found.items() if name in ("method", "training", "data", "preference")}
    if wrong := [name for name, value in sections.items() if not isinstance(value, dict)] or found.keys() - sections:
        raise EngineStartError(
            f"--fine-tuning-config {path}: {sorted(wrong)[0]}: give settings in the sections method, training and data"
        )
    return sections


async def _fetch(lifecycle: AdapterLifecycle, model: str, target: Path) -> dict[str, Any]:
    """Copy the package of ``model``, NAME@VERSION, into ``target``; its configuration."""
    try:
        with lifecycle.registry.lease(model) as lease:
            assert isinstance(lease.key, AdapterKey)
            path = lifecycle.registry.leased(lease.key).path
            with lifecycle.store.held(path):
                await lifecycle.store.run(lifecycle.store.fetch, path)
                return await asyncio.to_thread(copy_package, path, target)
    except UnknownModelError as error:
        raise JobFailedError("model_not_found", f"{model} was deleted before the job began", "model") from error


async def _publish(lifecycle: AdapterLifecycle, name: str, package: Path) -> None:
    """Serve the package as ``name``. Raises as ``AdapterLifecycle.install`` does."""
    await lifecycle.install_copy(name, package)


async def _withdraw(lifecycle: AdapterLifecycle, name: str) -> None:
    """Serve ``name`` no more."""
    await lifecycle.remove(name)
