"""What can be evaluated, and where it is asked.

A target is an adapter package, a fully trained base, a name that a server knows, or the base itself. It is asked on a
server that runs already, or on one of our own for as long as it takes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import AdapterError
from adapters.kinds.config import CONFIG_FILE
from adapters.package.files import MANIFEST_FILE
from adapters.package.manifest import Manifest, read_manifest
from trainer.config.loading import load_config
from trainer.config.schema import TrainConfig
from trainer.errors import EvaluationError, PublishError
from trainer.evaluation.rows import config_beside
from trainer.files import BASE_DIR, PACKAGE_DIR, SERVED_TEMPLATE
from trainer.serving.client import AdminClient, Endpoint, InferenceClient
from trainer.serving.local_server import start_server, wait_until_ready
from trainer.serving.upload import publish

BASE, LIVE = "base", "live:"


@dataclass(frozen=True)
class EvaluationTarget:
    """One model. ``package`` is an adapter's directory, ``trained_base`` that of a whole model, ``name`` what a server
    serves; the base itself has none of them."""

    label: str
    package: Path | None = None
    trained_base: Path | None = None
    name: str | None = None

    @property
    def directory(self) -> Path | None:
        """Where its files are, if it has any here."""
        return self.package or self.trained_base

    @property
    def config(self) -> Path | None:
        """The configuration of the run that made it, where that is still beside it."""
        return config_beside(self.directory) if self.directory else None


@dataclass(frozen=True)
class ServeOptions:
    """How ``hotswap serve`` is to load the base of a target. ``template`` is a file, None for the base's own."""

    base: str
    quantize: str
    dtype: str
    template: Path | None = None
    trust_remote_code: bool = False


def find_target(text: str, *, on_server: bool) -> EvaluationTarget:
    """What ``text`` means: ``base``, ``live:NAME``, a directory (a run's output, too), or a name that a server serves.

    Raises EvaluationError where it means nothing.
    """
    if text == BASE:
        return EvaluationTarget(BASE)
    path = Path(text).expanduser()
    if path.is_dir() and not text.startswith(LIVE):
        return _in_directory(path, text)
    if not on_server:
        raise EvaluationError(
            f"there is no package {text}; give a directory, or --server URL to evaluate what a server serves"
        )
    return EvaluationTarget(text.removeprefix(LIVE), name=text.removeprefix(LIVE))


def _in_directory(path: Path, text: str) -> EvaluationTarget:
    for place in (path, *(path / name for name in (PACKAGE_DIR, BASE_DIR))):
        if (place / CONFIG_FILE).is_file():  # some trainers leave the base's config.json beside it
            return EvaluationTarget(text, package=place)
        if (place / "config.json").is_file():
            return EvaluationTarget(text, trained_base=place)
        if (place / MANIFEST_FILE).is_file():
            return EvaluationTarget(text, package=place)
    raise EvaluationError(f"{text} holds no adapter package (adapter_config.json) and no base (config.json)")


def serve_options_of(target: EvaluationTarget, *, base: str | None, quantize: str | None) -> ServeOptions:
    """How to serve the base of ``target``, which has a directory: as its manifest and its run say; ``base`` and
    ``quantize`` override that. Raises EvaluationError when the base is not known."""
    if target.trained_base:
        return ServeOptions(str(target.trained_base), quantize or "none", "auto", _template(target))
    return _trained_with(target, base, quantize)


def base_serve_options_of(target: EvaluationTarget, *, base: str | None, quantize: str | None) -> ServeOptions:
    """How to serve the base that ``target`` was trained from: of a fully trained base, what it was before."""
    return _trained_with(target, base, quantize)


def _trained_with(target: EvaluationTarget, base: str | None, quantize: str | None) -> ServeOptions:
    manifest = _manifest(target)
    config = _config(target)
    name = base or (config.base if config else None) or (manifest.base.name if manifest else None)
    if name is None:
        raise EvaluationError(
            f"{target.label} does not say which base it is for; name it with --base, or give --server"
        )
    settings = manifest.training if manifest else {}
    recorded = settings.get("quantize") or (config.training.quantize if config else None)
    dtype = settings.get("dtype") or (config.training.dtype if config else None)
    return ServeOptions(name, quantize or str(recorded or "none"), str(dtype or "auto"), _template(target))


def _config(target: EvaluationTarget) -> TrainConfig | None:
    return load_config(target.config, (), {}) if target.config else None


def _template(target: EvaluationTarget) -> Path | None:
    """The template that it was trained with, which training leaves beside it where it is not the base's own."""
    file = target.directory.resolve().parent / SERVED_TEMPLATE if target.directory else None
    return file if file and file.is_file() else None


def _manifest(target: EvaluationTarget) -> Manifest | None:
    try:
        return read_manifest(target.package) if target.package else None
    except AdapterError as error:
        raise EvaluationError(f"{target.label} is not a sound package: {error}") from error


Endpoints = Mapping[EvaluationTarget, Endpoint]
_SECONDS = 60.0
_log = logging.getLogger(__name__)


@contextmanager
def started_server(serving: ServeOptions, targets: Sequence[EvaluationTarget]) -> Iterator[Endpoints]:
    """``hotswap serve`` with the packages of ``targets``, which all have the base of ``serving``; stopped at the end.

    Raises ServerStartError with the server's own last words.
    """
    names = {target: f"evaluated-{i}" for i, target in enumerate(targets) if target.package}
    adapters = [f"--adapter={name}={target.package}" for target, name in names.items()]
    options = ["--model", serving.base, "--quantize", serving.quantize, "--dtype", serving.dtype, "--allow-noop"]
    folder = Path(tempfile.mkdtemp(prefix="hotswap-eval-"))
    if serving.trust_remote_code:
        options.append("--trust-remote-code")
    if serving.template:
        options.append(f"--chat-template={serving.template}")
    with start_server([*options, *adapters], folder / "server.log") as server:
        asyncio.run(wait_until_ready(server))
        try:
            base = asyncio.run(_base_name(server.url, server.key))
            yield {target: Endpoint(server.url, names.get(target, base), server.key) for target in targets}
        finally:
            shutil.rmtree(folder)  # of a server that did not start the log stays


@contextmanager
def running_server(
    server: str, targets: Sequence[EvaluationTarget], *, api_key: str | None, admin_key: str | None
) -> Iterator[Endpoints]:
    """The server at ``server``. Packages are uploaded under a name of their own and removed at the end.

    Raises EvaluationError, and PublishError for a package that it does not take.
    """
    key = api_key or admin_key
    uploaded: dict[EvaluationTarget, str] = {}
    base = asyncio.run(_base_name(server, key))
    try:
        for target in targets:
            if target.trained_base:
                raise EvaluationError(
                    f"{target.label} is a whole base, which a running server cannot load; leave --server out"
                )
            if target.package:
                uploaded[target] = f"eval-{secrets.token_hex(4)}"  # before: it may arrive and the answer be lost
                publish(target.package, server, uploaded[target], allow_noop=True, admin_key=admin_key)
        names = {target: uploaded.get(target) or target.name or base for target in targets}
        yield {target: Endpoint(server, name, key) for target, name in names.items()}
    finally:
        _remove(server, uploaded.values(), admin_key)


async def _base_name(server: str, key: str | None) -> str:
    async with InferenceClient(server, key, timeout=_SECONDS) as client:
        return await client.base_name()


def _remove(server: str, names: Iterable[str], admin_key: str | None) -> None:
    """Remove what was uploaded, as far as it can be: answers that are there already are not lost over it."""
    with AdminClient(server, admin_key, timeout=_SECONDS) as client:
        for name in names:
            try:
                client.delete(name)
            except PublishError as error:
                _log.warning("%s, which eval uploaded, may still be on %s: %s", name, client.server, error)
