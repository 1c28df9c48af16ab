"""What the configurations of kinds share: common keys, rules for keys that a kind does not read, checks of values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec
from typing_extensions import override

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.head_names import without_head
from adapters.limits import PackageLimits
from adapters.quoting import describe_error, quote

CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."  # of the names under which peft saves the tensors of modules
CAUSAL_LM, SEQ_2_SEQ_LM = "CAUSAL_LM", "SEQ_2_SEQ_LM"
SEQ_CLS, TOKEN_CLS, FEATURE_EXTRACTION = "SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"
TASKS = (CAUSAL_LM, SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS, FEATURE_EXTRACTION)


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that every kind may have. Subclasses add the keys that their mathematics needs.

    ``trainable_token_indices`` are single tokens of the embedding and the head that are trained beside
    (``kinds.replacement``); peft writes them for kinds that adapt modules, and all kinds mean the same by them.
    ``id2label`` and ``problem_type`` are of a head of the adapter's own, where a trainer wrote them here.

    ``KIND`` is our short name of the kind. ``IGNORED`` keys concern training or peft's own loading and never change
    what a saved adapter computes. ``REFUSED`` keys do, are not served, and are mapped to what they ask for.
    ``DESCRIPTIVE`` fields are read, and decide nothing that the tensors do not say already. ``INDEX_DTYPES`` are the
    integer types of tensors, for kinds that have any; ``EMPTY_TENSORS`` says whether a tensor may have no elements.
    ``WHOLE_PREFIX`` is what the names of whole modules that peft saves beside the kind's tensors begin with; None where
    it saves none. ``WIDENS``: the kind adapts the embedding and the head of a base whose vocabulary was resized for
    training, too.
    """

    peft_type: str
    task_type: str | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    id2label: dict[str, str] | None = None
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    KIND: ClassVar[str] = ""
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"auto_mapping", "inference_mode", "label2id", "num_labels", "revision"}
    )
    REFUSED: ClassVar[Mapping[str, str]] = {"modules_to_save": "fully trained modules"}
    WHOLE_PREFIX: ClassVar[str | None] = None
    WIDENS: ClassVar[bool] = False
    DESCRIPTIVE: ClassVar[frozenset[str]] = frozenset(
        {"task_type", "peft_version", "base_model_name_or_path", "id2label", "problem_type"}
    )
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ()
    EMPTY_TENSORS: ClassVar[bool] = False

    def check(self, limits: PackageLimits) -> None:
        """Raise PackageError for values that no sound package has, UnsupportedKindError for those not served."""
        if self.task_type not in (None, *TASKS):
            raise UnsupportedKindError(
                f"the adapter's task_type is {quote(self.task_type)}; adapters of {', '.join(TASKS)} are served"
            )

    def semantics(self) -> dict[str, Any]:
        """The part of the configuration that, with the tensors, decides what the adapter computes."""
        names = [name for name in self.__struct_fields__ if name not in self.DESCRIPTIVE]
        return {name: msgspec.to_builtins(getattr(self, name)) for name in names}

    @classmethod
    def parse(cls, raw: Mapping[str, Any], limits: PackageLimits) -> Self:
        """The configuration in ``raw``, checked. Raises PackageError and UnsupportedKindError."""
        fields = {key: value for key, value in raw.items() if key not in cls.IGNORED}
        if raw.get("task_type") in (SEQ_CLS, TOKEN_CLS) and "modules_to_save" not in cls.__struct_fields__:
            names = fields.get("modules_to_save")  # peft writes it for all kinds, for the head that comes with these
            fields["modules_to_save"] = without_head(names) if isinstance(names, list) else names
        fields = {key: value for key, value in fields.items() if not cls._is_dropped(key, value)}
        try:
            config = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise PackageError(f"adapter_config.json: {describe_error(error)}") from error
        config.check(limits)
        return config

    @classmethod
    def _is_dropped(cls, key: str, value: object) -> bool:
        """Whether a key that this class does not read may be left out; raises when it may not."""
        if key in cls.__struct_fields__:
            return False
        if value is None or value is False or value in ("", [], {}):  # switched off: a newer peft writes such keys
            return True
        if key in cls.REFUSED:
            raise UnsupportedKindError(
                f"adapter_config.json sets {key!r}: {cls.REFUSED[key]} are not served; train without this option"
            )
        raise PackageError(
            f"adapter_config.json sets the unknown key {quote(key)}; what peft 0.21 writes is understood, and newer "
            "keys only when null, false or empty. Remove the key if it does not change what the adapter computes"
        )


class TargetedConfig(AdapterConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that say which modules are adapted; ``adapters.kinds.patterns`` gives them peft's meaning.

    ``modules_to_save`` are trained whole (``kinds.replacement``); ``ensure_weight_tying`` keeps them, and trained
    tokens, alike in embedding and head.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False

    WHOLE_PREFIX: ClassVar[str | None] = PREFIX
    DESCRIPTIVE: ClassVar[frozenset[str]] = AdapterConfig.DESCRIPTIVE | {
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    }  # fmt: skip

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks by module pattern, empty for kinds without."""
        return {}

    @property
    def alphas(self) -> dict[str, float]:
        """Alphas by module pattern, empty for kinds without."""
        return {}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        listed = [*self.ranks, *self.alphas]
        for names in (self.target_modules, self.exclude_modules, self.layers_pattern, self.modules_to_save):
            listed += [names] if isinstance(names, str) else names or []
        check_patterns(listed, limits)


class RankPattern:
    """For configurations with a ``rank_pattern`` of whole ranks."""

    __slots__ = ()
    rank_pattern: dict[str, int] | None

    @property
    def ranks(self) -> dict[str, int]:
        """``rank_pattern``, empty when absent."""
        return self.rank_pattern or {}


class AlphaPattern:
    """For configurations with an ``alpha_pattern``."""

    __slots__ = ()
    alpha_pattern: dict[str, float] | None

    @property
    def alphas(self) -> dict[str, float]:
        """``alpha_pattern``, empty when absent."""
        return self.alpha_pattern or {}


def check_patterns(listed: Sequence[str], limits: PackageLimits) -> None:
    """PackageError when there are more module patterns, or longer ones, than the limits say."""
    if len(listed) > limits.max_patterns:
        raise PackageError(f"adapter_config.json has {len(listed)} module patterns; {limits.max_patterns} are read")
    if any(len(pattern) > limits.max_pattern_chars for pattern in listed):
        raise PackageError(
            f"adapter_config.json has a module pattern longer than {limits.max_pattern_chars} characters"
        )


def check_pattern_ranks(r: int, patterns: Mapping[str, int], limits: PackageLimits) -> None:
    """``check_ranks`` of ``r`` and of ``rank_pattern``."""
    check_ranks([("r", r), *((f"rank_pattern {quote(k)}", v) for k, v in patterns.items())], limits)


def check_ranks(ranks: Iterable[tuple[str, int]], limits: PackageLimits) -> None:
    """PackageError for a rank, given with the name of its key, that is below 1 or above the limit."""
    for where, rank in ranks:
        if not 1 <= rank <= limits.max_rank:
            raise PackageError(f"adapter_config.json: {where} is {rank}; values from 1 to {limits.max_rank} are read")


class WeightUpdateConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What kinds share that add a matrix to a linear map's weight, be it whole or a product of factors."""

    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {"init_weights"}  # how training began

    @override
    def semantics(self) -> dict[str, Any]:
        """Patterns keep the order of the file: the first that matches a module counts."""
        found = super().semantics()
        return {name: list(value.items()) if isinstance(value, dict) else value for name, value in found.items()}


class BiasedConfig(WeightUpdateConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kinds that can train biases beside: ``none``, ``all``, or those of adapted maps alone (``..._only``)."""

    bias: str = "none"

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if self.bias not in ("none", "all") and not self.bias.endswith("_only"):
            raise PackageError(
                f"adapter_config.json: bias {quote(self.bias)} is unknown; peft writes none, all, ..._only"
            )


STORAGE = frozenset({"fan_in_fan_out"})  # how the base stores its weights; every tensor has the same shape either way


def check_finite_number(name: str, value: float) -> None:
    """PackageError for infinity and NaN."""
    if not math.isfinite(value):
        raise PackageError(f"adapter_config.json: {name} must be finite")
