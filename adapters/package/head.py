"""What the head of a package answers with: its task, its labels and how they are told apart. Imports no torch.

Trainers write that beside the adapter: ours into the manifest, transformers' into config.json, some into
adapter_config.json. Where nobody says it, it is as transformers has it without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from adapters.errors import PackageError
from adapters.kinds.config import SEQ_CLS, TOKEN_CLS, AdapterConfig
from adapters.kinds.head_names import head_parameter
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import MODEL_CONFIG_FILE
from adapters.package.header import TensorInfo
from adapters.package.manifest import Manifest, PooledRef
from adapters.package.strict_json import read_object
from adapters.quoting import describe_error

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
MAX_LABELS = 65_536
_MAX_LABEL_CHARS = 1024


@dataclass(frozen=True)
class PackageHead:
    """A head of ``num_labels`` outputs, of a text or (``of_tokens``) of each of its tokens. Compares by value.

    ``labels`` are their names. ``activation`` makes probabilities of them: "softmax", "sigmoid", or "" where they are
    numbers that mean what they are. ``pad_token_id`` at the end of a text is not read, as transformers does not.
    """

    num_labels: int
    of_tokens: bool = False
    labels: tuple[str, ...] = ()
    activation: str = ""
    pad_token_id: int | None = None

    def label(self, number: int) -> str:
        """The name of an output."""
        return self.labels[number] if number < len(self.labels) else f"LABEL_{number}"


class _ModelConfig(msgspec.Struct, frozen=True):
    """Of transformers' config.json what tells of a head; everything else is skipped."""

    id2label: dict[str, str] | None = None
    problem_type: ProblemType | None = None
    pad_token_id: int | list[int] | None = None
    sentence_transformers: dict[str, Any] | None = None
    sbert_ce_default_activation_function: str | None = None


def read_head(
    directory: Path,
    config: AdapterConfig,
    manifest: Manifest | None,
    infos: Mapping[str, TensorInfo],
    limits: PackageLimits = DEFAULT_LIMITS,
) -> PackageHead | None:
    """The head of the package in ``directory``, whose tensors are ``infos``; None without one. Raises PackageError."""
    if config.task_type not in (SEQ_CLS, TOKEN_CLS):
        return None
    shapes = [info.shape for name, info in infos.items() if head_parameter(name) == "weight"]
    if not shapes or len(shapes[0]) != 2:
        raise PackageError(
            f"the adapter's task_type is {config.task_type}, but it holds no head: peft saves its weight as "
            "base_model.model.score.weight, [labels, hidden size]"
        )
    count = shapes[0][0]
    if count > MAX_LABELS:
        raise PackageError(f"the head has {count} outputs; at most {MAX_LABELS} are read")
    beside = _model_config(directory / MODEL_CONFIG_FILE, limits)
    trained = manifest.pooled if manifest is not None and manifest.pooled is not None else PooledRef()
    names = trained.labels or _names(config.id2label or beside.id2label or {}, count)
    if len(names) not in (0, count) or any(len(name) > _MAX_LABEL_CHARS for name in names):
        raise PackageError(f"the head has {count} outputs, and {len(names)} labels are named")
    problem = trained.problem_type or config.problem_type or beside.problem_type
    pad = None if manifest is not None or not isinstance(beside.pad_token_id, int) else beside.pad_token_id
    activation = _activation(problem, count, config.task_type == TOKEN_CLS, beside)
    return PackageHead(count, config.task_type == TOKEN_CLS, tuple(names), activation, pad)


def _activation(problem: str | None, count: int, of_tokens: bool, beside: _ModelConfig) -> str:
    """As transformers trains: without a problem type one output is a number, and of several one is right."""
    if problem is not None:
        named = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid", "regression": ""}
        return named[problem]
    cross_encoder = (beside.sentence_transformers or {}).get("activation_fn")
    if "Sigmoid" in str(cross_encoder or beside.sbert_ce_default_activation_function or ""):
        return "sigmoid"
    return "softmax" if count > 1 or of_tokens else ""


def _names(id2label: Mapping[str, str], count: int) -> list[str]:
    """Labels by number; none where they are of another head, as those of a base that was not changed with it."""
    names = [id2label.get(str(number)) for number in range(count)]
    return [name for name in names if name is not None] if len(id2label) == count and None not in names else []


def _model_config(path: Path, limits: PackageLimits) -> _ModelConfig:
    if not path.is_file():
        return _ModelConfig()
    try:
        return msgspec.convert(read_object(path, limits.max_config_bytes), _ModelConfig, strict=True)
    except msgspec.ValidationError as error:
        raise PackageError(f"{MODEL_CONFIG_FILE}: {describe_error(error)}") from error
