"""The manifest of a package: how, on what and for which base an adapter was made. Imports no torch.

It is optional: a package that peft alone saved has none, and is then checked by its shapes only.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.added_tokens import AddedToken
from adapters.package.files import MANIFEST_FILE
from adapters.package.strict_json import read_object
from adapters.quoting import describe_error, quote

FORMAT_VERSION = 1

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
PoolingName = Literal["mean", "last", "cls", "max", "weightedmean", "mean_sqrt_len_tokens"]
MAX_POINTS = 1000
Curve = Annotated[list[tuple[Count, float]], msgspec.Meta(max_length=MAX_POINTS)]
Scalar = str | int | float | bool | None
Setting = Scalar | list[Scalar] | dict[str, Scalar]


class BaseRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base an adapter was trained on: a name for people, and its fingerprint (bases.fingerprint)."""

    name: str
    fingerprint: str


ToolForm = Literal["text", "template"]


class DataRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The training data: SHA-256 of the files as read, and rows used for training.

    ``tools`` says how functions and calls were written, as text or by the chat template; None where there were none.
    """

    sha256: Sha256
    rows: Count
    tools: ToolForm | None = None


class Losses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The loss as it fell, of training and of the validation split: pairs of step and loss, thinned out."""

    train: Curve = []
    validation: Curve = []


class PooledRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an adapter of no text answers: classes of its own head, a number, or an embedding.

    ``labels`` are the names of the head's outputs, in their order; ``problem_type`` is transformers' word for how they
    were trained, None for its default. ``pooling`` says which hidden states of a text an embedding is made of, and
    ``normalize`` whether it is brought to length 1.
    """

    labels: list[str] = []
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    pooling: PoolingName | None = None
    normalize: bool = True


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the trainer records. ``kind`` is our short name of the kind; ``created`` has a time zone.

    ``special_tokens`` are the tokenizer's, by role; ``added_tokens`` those that the adapter has beside the base's
    vocabulary, where no tokenizer comes with it; ``versions`` of the packages used for training; ``metrics`` on the
    validation split, ``losses`` on the way there; ``training`` a summary of the configuration that made the adapter;
    ``pooled`` what it answers in the place of text.
    """

    format_version: int = FORMAT_VERSION
    kind: str
    base: BaseRef
    created: Annotated[datetime, msgspec.Meta(tz=True)]
    chat_template_sha256: Sha256 | None = None
    special_tokens: dict[str, str | list[str]] = {}
    added_tokens: list[AddedToken] = []
    data: DataRef | None = None
    seed: int | None = None
    versions: dict[str, str] = {}
    metrics: dict[str, float] = {}
    losses: Losses | None = None
    training: dict[str, Setting] = {}
    pooled: PooledRef | None = None


def read_manifest(directory: Path, limits: PackageLimits = DEFAULT_LIMITS) -> Manifest | None:
    """The manifest of the package in ``directory``, None without one. PackageError for a malformed one."""
    path = directory / MANIFEST_FILE
    return parse_manifest(read_object(path, limits.max_config_bytes)) if path.is_file() else None


def parse_manifest(raw: dict[str, Any]) -> Manifest:
    """The manifest in ``raw``. Raises PackageError."""
    version = raw.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise PackageError(
            f"{MANIFEST_FILE} has format_version {quote(version)}; this server reads {FORMAT_VERSION}: "
            "upgrade it, or train the adapter with the server's version"
        )
    try:
        return msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise PackageError(f"{MANIFEST_FILE}: {describe_error(error)}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
