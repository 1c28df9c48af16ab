"""The configurations of kinds whose update of a linear map is a product of factors of its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from typing_extensions import override

from adapters.errors import PackageError
from adapters.kinds.config import (
    STORAGE,
    AlphaPattern,
    BiasedConfig,
    RankPattern,
    TargetedConfig,
    WeightUpdateConfig,
    check_finite_number,
    check_pattern_ranks,
    check_patterns,
    check_ranks,
)
from adapters.limits import PackageLimits
from adapters.quoting import quote

_CONVOLUTIONS = frozenset({"use_effective_conv2d"})  # read for convolutions only


class AdaLoraConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of AdaLoRA, whose configuration has those of LoRA too.

    ``rank_pattern`` says for each adapted module which of its ``init_r`` components were kept; the others are not
    saved. peft does not read LoRA's ``r``, ``use_rslora``, ``alpha_pattern`` and options of single variants here.
    """

    init_r: int = 12
    lora_alpha: float = 8
    rank_pattern: dict[str, list[bool]] | None = None

    KIND: ClassVar[str] = "adalora"
    EMPTY_TENSORS: ClassVar[bool] = True  # of modules that lost all their components
    IGNORED: ClassVar[frozenset[str]] = BiasedConfig.IGNORED | STORAGE | {
        "alpha_pattern", "beta1", "beta2", "corda_config", "deltaT", "eva_config", "init_lora_weights", "loftq_config",
        "lora_bias", "lora_dropout", "lora_ga_config", "megatron_core", "monteclora_config", "orth_reg_weight",
        "qalora_group_size", "r", "runtime_config", "target_r", "tfinal", "tinit", "total_step", "use_bdlora",
        "use_qalora", "use_rslora", "velora_config",
    }  # fmt: skip
    REFUSED: ClassVar[dict[str, str]] = {
        "alora_invocation_tokens": "adapters that wait for an invocation",
        "arrow_config": "Arrow routers",
        "kasa_config": "KaSA adapters",
        "layer_replication": "adapters that replicate layers of the base",
        "megatron_config": "Megatron adapters",
        "target_parameters": "adapters of bare parameters",
        "use_dora": "magnitudes of DoRA on AdaLoRA, which peft does not compute either,",
    }

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("init_r", self.init_r)], limits)
        check_finite_number("lora_alpha", self.lora_alpha)
        check_patterns(list(self.rank_pattern or {}), limits)
        for name, kept in (self.rank_pattern or {}).items():
            if len(kept) != self.init_r:
                raise PackageError(
                    f"adapter_config.json: rank_pattern {quote(name)} has {len(kept)} entries; init_r is {self.init_r}"
                )


class LycorisConfig(
    RankPattern, AlphaPattern, WeightUpdateConfig, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """What LoHa and LoKr share. Patterns keep the order of the file: the first that matches a module counts."""

    r: int = 8
    alpha: float = 8
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    IGNORED: ClassVar[frozenset[str]] = WeightUpdateConfig.IGNORED | _CONVOLUTIONS | {"module_dropout", "rank_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        for alpha in (self.alpha, *self.alphas.values()):
            check_finite_number("alpha", alpha)


class LoHaConfig(LycorisConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of LoHa."""

    KIND: ClassVar[str] = "loha"

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_pattern_ranks(self.r, self.ranks, limits)


class LoKrConfig(LycorisConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of LoKr. ``r`` may be as large as one likes: beyond half of a factor's sides the factor is saved whole."""

    decompose_both: bool = False
    decompose_factor: int = -1

    KIND: ClassVar[str] = "lokr"
    IGNORED: ClassVar[frozenset[str]] = LycorisConfig.IGNORED | {"rank_dropout_scale"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if min([self.r, *self.ranks.values()]) < 1:
            raise PackageError("adapter_config.json: r and the ranks of rank_pattern must be at least 1")


class GraloraConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of GraLoRA: ``gralora_k`` times ``gralora_k`` blocks, and ``hybrid_r`` components across all of them."""

    r: int = 32
    hybrid_r: int = 0
    alpha: float = 64
    gralora_k: int = 2

    KIND: ClassVar[str] = "gralora"
    IGNORED: ClassVar[frozenset[str]] = BiasedConfig.IGNORED | STORAGE | {"gralora_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r), ("r + hybrid_r", self.r + self.hybrid_r)], limits)
        check_finite_number("alpha", self.alpha)
        if self.hybrid_r < 0:
            raise PackageError(f"adapter_config.json: hybrid_r is {self.hybrid_r}; it cannot be negative")
        if self.gralora_k < 1 or self.r % self.gralora_k:
            raise PackageError(f"adapter_config.json: gralora_k is {self.gralora_k}, which must divide r {self.r}")


class DeloraConfig(RankPattern, BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of DeLoRA. ``delora_lambda`` and ``lambda_pattern`` are where training began; what it reached is saved."""

    r: int = 8
    rank_pattern: dict[str, int] | None = None

    KIND: ClassVar[str] = "delora"
    IGNORED: ClassVar[frozenset[str]] = BiasedConfig.IGNORED | {"delora_lambda", "lambda_pattern", "module_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_pattern_ranks(self.r, self.ranks, limits)


class MissConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of MiSS: ``r`` sums of input features. ``init_weights`` is also the variant: plain, ``mini`` or ``bat``.

    ``mini_r`` is read by ``mini`` only: the columns that are repeated over the output features.
    """

    r: int
    mini_r: int = 1
    init_weights: bool | Literal["bat", "mini"] = True
    bias: Literal["none", "all", "MiSS_only"] = "none"

    KIND: ClassVar[str] = "miss"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"miss_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if self.r < 1:
            raise PackageError(f"adapter_config.json: r is {self.r}; it must be at least 1")
        if self.init_weights == "mini" and self.mini_r < 1:
            raise PackageError(f"adapter_config.json: mini_r is {self.mini_r}; it must be at least 1")
