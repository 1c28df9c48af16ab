"""How sentence-transformers makes vectors of hidden states, as it writes that beside a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.dense import Dense, DenseConfig, UnservedModuleError, read_dense
from adapters.package.files import MODULE_CONFIG, MODULES_FILE, PROMPTS_FILE, READING_FILE, module_file
from adapters.package.manifest import Manifest, PooledRef, PoolingName
from adapters.quoting import describe_error, quote

_PACKAGE = "sentence_transformers."  # where its modules are, which have moved inside of it
_SERVED = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
_POOLINGS: dict[str, PoolingName] = {
    "mean": "mean",
    "lasttoken": "last",
    "cls": "cls",
    "max": "max",
    "weightedmean": "weightedmean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
_OLDER_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
Found = TypeVar("Found")


@dataclass(frozen=True)
class SentenceModel:
    """How vectors are made, and what is put before texts, by the names that ``prompts`` have. Compares by value.

    Pooled states go through the ``layers``. ``default_prompt`` names what is put before a text where nobody says. Its
    tokens are not pooled unless ``pools_prompts``. With ``in_conversations`` texts are read as what a user says, behind
    that prompt as a system's words, as the chat template writes it. ``problem`` says why vectors as it makes them are
    not served; they are then others.
    """

    pooled: PooledRef = field(default_factory=PooledRef)
    prompts: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    default_prompt: str | None = None
    pools_prompts: bool = True
    in_conversations: bool = False
    layers: tuple[Dense, ...] = ()


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        """The name of its class; with where it is from, if that is not sentence-transformers."""
        return self.type.rpartition(".")[2] if self.type.startswith(_PACKAGE) else self.type


class _Prompts(msgspec.Struct, frozen=True):
    prompts: dict[str, str | None] = {}
    default_prompt_name: str | None = None

    @property
    def texts(self) -> dict[str, str]:
        return {name: text or "" for name, text in self.prompts.items()}


class _Reading(msgspec.Struct, frozen=True):
    """How texts become hidden states."""

    transformer_task: str = "feature-extraction"
    modality_config: dict[str, Any] = {}
    module_output_name: str | None = "token_embeddings"
    processing_kwargs: dict[str, Any] | None = None
    do_lower_case: bool | None = False


class _Normalize(msgspec.Struct, frozen=True):
    module_input_name: str | None = None
    module_output_name: str | None = None


def read_sentence_model(directory: Path, limits: PackageLimits = DEFAULT_LIMITS) -> SentenceModel | None:
    """What stands in ``directory``; None where there is no modules.json. Raises PackageError for malformed files."""
    path = directory / MODULES_FILE
    if not path.is_file():
        return None
    modules = _read(path, list[_Module], limits)
    named = _read_prompts(directory, limits)
    try:
        return _read_modules(directory, modules, named, limits)
    except UnservedModuleError as problem:
        return SentenceModel(prompts=named.texts, problem=str(problem), default_prompt=named.default_prompt_name)


def read_adapters_model(
    directory: Path, manifest: Manifest | None, limits: PackageLimits = DEFAULT_LIMITS
) -> tuple[SentenceModel | None, tuple[str, ...]]:
    """What of that is served for the adapter in ``directory``, and what there is to know of it. Raises PackageError."""
    if not (directory / MODULES_FILE).is_file() or (manifest is not None and manifest.pooled is not None):
        return None, ()
    modules = _read(directory / MODULES_FILE, list[_Module], limits)
    pooling = next((module for module in modules if module.kind == "Pooling"), None)
    if pooling is not None and not module_file(directory, pooling.path, MODULE_CONFIG).is_file():
        return None, (
            f"it was saved by sentence-transformers, and its folder {quote(pooling.path)} is missing: vectors are "
            "pooled as the base's are, unless a request says `pooling` or a hotswap.json names it under `pooled`",
        )
    found = read_sentence_model(directory, limits)
    assert found is not None
    if found.problem:
        return found, (
            f"its vectors are not served as sentence-transformers makes them: {found.problem}; requests may ask for "
            "those of its hidden states by `pooling`",
        )
    return found, ()


def _read_modules(directory: Path, modules: Sequence[_Module], named: _Prompts, limits: PackageLimits) -> SentenceModel:
    """Raises PackageError, and UnservedModuleError for what is not served."""
    for module in modules:
        if module.kind not in _SERVED:
            raise UnservedModuleError(f"it has a module {quote(module.kind)}")
    kinds = [module.kind for module in modules if module.kind != "Dropout"]  # which does nothing here
    if kinds.count("Pooling") != 1:
        raise UnservedModuleError("it has no module that pools" if "Pooling" not in kinds else "it pools twice")
    pools = kinds.index("Pooling")
    behind = kinds[pools + 1 :]
    dense = behind.count("Dense")
    if kinds[:pools] != ["Transformer"] or behind[:dense] != ["Dense"] * dense or "Transformer" in behind:
        raise UnservedModuleError(f"its modules come in the order {quote(', '.join(kinds))}")
    in_conversations = _reads_conversations(directory, limits)
    of_kind = {kind: [module for module in modules if module.kind == kind] for kind in _SERVED}
    for module in of_kind["Normalize"]:
        _check_normalize(directory, module.path, limits)
    config = _read(module_file(directory, of_kind["Pooling"][0].path, MODULE_CONFIG), dict[str, Any], limits)
    modes = _modes(config)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UnservedModuleError(f"it pools by {' and '.join(map(quote, modes))}")
    return SentenceModel(
        PooledRef(pooling=_POOLINGS[modes[0]], normalize="Normalize" in behind),
        named.texts,
        default_prompt=named.default_prompt_name,
        pools_prompts=in_conversations or config.get("include_prompt") is not False,
        in_conversations=in_conversations,
        layers=_read_layers(directory, [module.path for module in of_kind["Dense"]], limits),
    )


def _reads_conversations(directory: Path, limits: PackageLimits) -> bool:
    """Whether texts are read in conversations; as they are where nobody says. Raises UnservedModuleError."""
    path = directory / READING_FILE
    found = _read(path, _Reading, limits) if path.is_file() else _Reading()
    states = found.module_output_name in (None, "token_embeddings")
    if found.transformer_task != "feature-extraction" or not states:
        raise UnservedModuleError(
            f"it reads texts by {quote(found.transformer_task)}, for {quote(found.module_output_name)}"
        )
    if found.processing_kwargs or found.do_lower_case:
        what = "processing_kwargs" if found.processing_kwargs else "do_lower_case"
        raise UnservedModuleError(f"it changes texts before they are read ({what} in {READING_FILE})")
    return "message" in found.modality_config


def _read_layers(directory: Path, paths: Sequence[str], limits: PackageLimits) -> tuple[Dense, ...]:
    layers: list[Dense] = []
    for path in paths:
        config = _read(module_file(directory, path, MODULE_CONFIG), DenseConfig, limits)
        layers.append(read_dense(directory, path, config, limits))
        if len(layers) > 1 and layers[-2].out_features != layers[-1].in_features:
            raise PackageError(f"{path}: it reads {layers[-1].in_features} features, and those before are others")
    return tuple(layers)


def _check_normalize(directory: Path, path: str, limits: PackageLimits) -> None:
    file = module_file(directory, path, MODULE_CONFIG)
    config = _read(file, _Normalize, limits) if file.is_file() else _Normalize()
    if {config.module_input_name, config.module_output_name} - {None, "sentence_embedding"}:
        raise UnservedModuleError(f"its module {quote(path)} changes other things than the vectors of texts")


def _read_prompts(directory: Path, limits: PackageLimits) -> _Prompts:
    path = directory / PROMPTS_FILE
    found = _read(path, _Prompts, limits) if path.is_file() else _Prompts()
    if found.default_prompt_name is not None and found.default_prompt_name not in found.prompts:
        raise PackageError(f"{PROMPTS_FILE}: the default prompt {quote(found.default_prompt_name)} is not among them")
    return found


def _modes(config: Mapping[str, Any]) -> list[str]:
    """The ways of pooling, whose results are put side by side: named, in older files by a flag of each, or a mean."""
    named = config.get("pooling_mode")
    if named is not None:
        return list(map(str, named if isinstance(named, list) else [named]))
    return [mode for key, mode in _OLDER_KEYS.items() if config.get(key)] or ["mean"]


def _read(path: Path, kind: type[Found], limits: PackageLimits) -> Found:
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_config_bytes)
        return msgspec.json.decode(data, type=kind)
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise PackageError(f"{path.parent.name}/{path.name}: {describe_error(error)}") from error
