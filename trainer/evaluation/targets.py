"""What can be evaluated: an adapter package, a fully trained base, a name that a server knows, or the base itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.errors import AdapterError
from adapters.files import MANIFEST_FILE
from adapters.manifest import Manifest, read_manifest
from trainer.config.file import load_config
from trainer.config.schema import TrainConfig
from trainer.errors import EvaluationError
from trainer.evaluation.rows import config_beside
from trainer.run_files import BASE_DIR, PACKAGE_DIR, SERVED_TEMPLATE

BASE, LIVE = "base", "live:"


@dataclass(frozen=True)
class Target:
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
class Serving:
    """How ``hotswap serve`` is to load the base of a target. ``template`` is a file, None for the base's own."""

    base: str
    quantize: str
    dtype: str
    template: Path | None = None


def find_target(text: str, *, on_server: bool) -> Target:
    """What ``text`` means: ``base``, ``live:NAME``, a directory (a run's output, too), or a name that a server serves.

    Raises EvaluationError where it means nothing.
    """
    if text == BASE:
        return Target(BASE)
    path = Path(text).expanduser()
    if path.is_dir() and not text.startswith(LIVE):
        return _in_directory(path, text)
    if not on_server:
        raise EvaluationError(
            f"there is no package {text}; give a directory, or --server URL to evaluate what a server serves"
        )
    return Target(text.removeprefix(LIVE), name=text.removeprefix(LIVE))


def _in_directory(path: Path, text: str) -> Target:
    for place in (path, *(path / name for name in (PACKAGE_DIR, BASE_DIR))):
        if (place / "adapter_config.json").is_file():  # some trainers leave the base's config.json beside it
            return Target(text, package=place)
        if (place / "config.json").is_file():
            return Target(text, trained_base=place)
        if (place / MANIFEST_FILE).is_file():
            return Target(text, package=place)
    raise EvaluationError(f"{text} holds no adapter package (adapter_config.json) and no base (config.json)")


def serving_of(target: Target, *, base: str | None, quantize: str | None) -> Serving:
    """How to serve the base of ``target``, which has a directory: as its manifest and its run say; ``base`` and
    ``quantize`` override that. Raises EvaluationError when the base is not known."""
    if target.trained_base:
        return Serving(str(target.trained_base), quantize or "none", "auto", _template(target))
    return _trained_with(target, base, quantize)


def base_serving(target: Target, *, base: str | None, quantize: str | None) -> Serving:
    """How to serve the base that ``target`` was trained from: of a fully trained base, what it was before."""
    return _trained_with(target, base, quantize)


def _trained_with(target: Target, base: str | None, quantize: str | None) -> Serving:
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
    return Serving(name, quantize or str(recorded or "none"), str(dtype or "auto"), _template(target))


def _config(target: Target) -> TrainConfig | None:
    return load_config(target.config, (), {}) if target.config else None


def _template(target: Target) -> Path | None:
    """The template that it was trained with, which training leaves beside it where it is not the base's own."""
    file = target.directory.resolve().parent / SERVED_TEMPLATE if target.directory else None
    return file if file and file.is_file() else None


def _manifest(target: Target) -> Manifest | None:
    try:
        return read_manifest(target.package) if target.package else None
    except AdapterError as error:
        raise EvaluationError(f"{target.label} is not a sound package: {error}") from error
