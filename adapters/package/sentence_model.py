"""How sentence-transformers makes vectors of hidden states, as it writes that beside a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import msgspec

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import MODULES_FILE
from adapters.package.manifest import Manifest, PooledRef
from adapters.quoting import describe_error, quote

PROMPTS_FILE = "config_sentence_transformers.json"
_SERVED = ("Transformer", "Pooling", "Normalize")
_POOLINGS: dict[str, Literal["mean", "last", "cls"]] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}
_OLDER_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
Found = TypeVar("Found")


@dataclass(frozen=True)
class SentenceModel:
    """How vectors are made, and what is put before texts, by the names that ``prompts`` have.

    ``problem`` says why vectors as it makes them are not served; they are then others.
    """

    pooled: PooledRef = field(default_factory=PooledRef)
    prompts: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        """The name of its class, which has moved between modules."""
        return self.type.rpartition(".")[2]


class _Prompts(msgspec.Struct, frozen=True):
    prompts: dict[str, str] = {}


def read_sentence_model(directory: Path, limits: PackageLimits = DEFAULT_LIMITS) -> SentenceModel | None:
    """What stands in ``directory``; None where there is no modules.json. Raises PackageError for malformed files."""
    path = directory / MODULES_FILE
    if not path.is_file():
        return None
    modules = _read(path, list[_Module], limits)
    prompts = directory / PROMPTS_FILE
    named = _read(prompts, _Prompts, limits).prompts if prompts.is_file() else {}
    other = next((module.kind for module in modules if module.kind not in _SERVED), None)
    pooling = next((module for module in modules if module.kind == "Pooling"), None)
    if other is not None or pooling is None:
        what = f"it has a module {quote(other)}" if other else "it has no module that pools"
        return SentenceModel(prompts=named, problem=what)
    parts = PurePosixPath(pooling.path).parts
    if ".." in parts or PurePosixPath(pooling.path).is_absolute():
        raise PackageError(f"{MODULES_FILE}: the path {quote(pooling.path)} leads out of its folder")
    config = _read(directory.joinpath(*parts, "config.json"), dict[str, Any], limits)
    modes = _modes(config)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        return SentenceModel(prompts=named, problem=f"it pools by {' and '.join(map(quote, modes)) or 'nothing'}")
    if config.get("include_prompt") is False:
        return SentenceModel(prompts=named, problem="it leaves the tokens of prompts out of its pooling")
    normalize = any(module.kind == "Normalize" for module in modules)
    return SentenceModel(PooledRef(pooling=_POOLINGS[modes[0]], normalize=normalize), named)


def unread_pooling(directory: Path, manifest: Manifest | None) -> tuple[str, ...]:
    """What to know of an adapter that sentence-transformers has saved into ``directory``."""
    if not (directory / MODULES_FILE).is_file() or (manifest is not None and manifest.pooled is not None):
        return ()
    return (
        "it was saved by sentence-transformers, of whose folders a package has none: vectors are pooled as the base's "
        "are, unless a request says `pooling` or a hotswap.json names it under `pooled`",
    )


def _modes(config: Mapping[str, Any]) -> list[str]:
    """The ways of pooling, whose results are put side by side: named, or in older files by a flag of each."""
    named = config.get("pooling_mode")
    if named is not None:
        return list(map(str, named if isinstance(named, list) else [named]))
    return [mode for key, mode in _OLDER_KEYS.items() if config.get(key)]


def _read(path: Path, kind: type[Found], limits: PackageLimits) -> Found:
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_config_bytes)
        return msgspec.json.decode(data, type=kind)
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise PackageError(f"{path.parent.name}/{path.name}: {describe_error(error)}") from error
