"""The configurations of kinds that add a matrix to a linear map's weight which is no product of trained factors."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from typing_extensions import override

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import (
    STORAGE,
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

_MAX_DEPTH = 64
WAVELETS = (
    *(f"db{i}" for i in range(1, 11)),
    *(f"sym{i}" for i in range(2, 11)),
    *(f"coif{i}" for i in range(1, 5)),
)
ACTIVATIONS = (
    "relu", "relu2", "relu6", "leaky_relu", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh",
    "quick_gelu", "silu", "swish", "mish", "sigmoid", "tanh", "linear",
)  # fmt: skip


class FourierFTConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of FourierFT."""

    n_frequency: int = 1000
    n_frequency_pattern: dict[str, int] | None = None
    scaling: float = 150.0
    random_loc_seed: int = 777

    KIND: ClassVar[str] = "fourierft"
    IGNORED: ClassVar[frozenset[str]] = WeightUpdateConfig.IGNORED | STORAGE

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        _check_counts("n_frequency", self.n_frequency, self.n_frequency_pattern, limits)
        check_finite_number("scaling", self.scaling)
        if not -(2**63) <= self.random_loc_seed < 2**64:
            raise PackageError(
                f"adapter_config.json: random_loc_seed is {self.random_loc_seed}, which is no 64-bit seed"
            )


class WaveFTConfig(FourierFTConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of WaveFT. ``proportional_parameters`` shares the frequencies out by the maps' sizes."""

    n_frequency: int = 2592
    scaling: float = 25.0
    wavelet_family: str = "db1"
    use_idwt: bool = True
    proportional_parameters: bool = False

    KIND: ClassVar[str] = "waveft"

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if self.use_idwt and self.wavelet_family not in WAVELETS:
            raise UnsupportedKindError(
                f"wavelet_family {quote(self.wavelet_family)} is not served, nor computed by peft; "
                f"served are {', '.join(WAVELETS)}"
            )


class ShiraConfig(WeightUpdateConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of SHiRA. The mask is saved as indices."""

    r: int = 32

    KIND: ClassVar[str] = "shira"
    IGNORED: ClassVar[frozenset[str]] = WeightUpdateConfig.IGNORED | STORAGE | {"mask_type", "random_seed"}
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ("I32",)

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)


class C3AConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of C3A."""

    block_size: int = 256
    block_size_pattern: dict[str, int] | None = None

    KIND: ClassVar[str] = "c3a"

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        _check_counts("block_size", self.block_size, self.block_size_pattern, limits)


class HiraConfig(RankPattern, WeightUpdateConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of HiRA."""

    r: int = 32
    rank_pattern: dict[str, int] | None = None

    KIND: ClassVar[str] = "hira"
    IGNORED: ClassVar[frozenset[str]] = WeightUpdateConfig.IGNORED | STORAGE | {"hira_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_pattern_ranks(self.r, self.ranks, limits)


class GloraConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of GLoRA: how each of its five parts is parametrised."""

    r: int = 8
    config_A_B: Literal["lora", "vector", "constant", "none"] = "lora"  # noqa: N815 (these three are peft's names)
    config_C: Literal["lora", "vector", "none"] = "lora"  # noqa: N815
    config_D_E: Literal["vector", "constant", "none"] = "constant"  # noqa: N815

    KIND: ClassVar[str] = "glora"

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)


class OSFConfig(WeightUpdateConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of OSF: how many singular directions stay, as a number or as a share (a float up to 1); None is half."""

    effective_rank: int | float | None = None
    rank_pattern: dict[str, int | float] | None = None

    KIND: ClassVar[str] = "osf"
    EMPTY_TENSORS: ClassVar[bool] = True  # of maps with no direction left to train
    IGNORED: ClassVar[frozenset[str]] = WeightUpdateConfig.IGNORED | {"target_svd_config"}  # peft does not read it

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        for value in (self.effective_rank, *(self.rank_pattern or {}).values()):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PackageError(f"adapter_config.json: effective_rank {value} is no number of singular directions")


class DeftConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of DEFT, and of PaRa (``para``), which only removes a subspace."""

    r: int = 8
    decomposition_method: Literal["relu", "qr"] = "relu"
    alpha: float | None = None
    para: bool = False

    KIND: ClassVar[str] = "deft"
    IGNORED: ClassVar[frozenset[str]] = WeightUpdateConfig.IGNORED | STORAGE | {"deft_dropout", "init_scale"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        check_finite_number("alpha", self.alpha or 0.0)


class PeanutConfig(WeightUpdateConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of PEANuT."""

    r: int = 32
    depth: int = 0
    act_fn: str = "relu"
    scaling: float = 1.0

    KIND: ClassVar[str] = "peanut"

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        check_finite_number("scaling", self.scaling)
        if not 0 <= self.depth <= _MAX_DEPTH:
            raise PackageError(f"adapter_config.json: depth is {self.depth}; values from 0 to {_MAX_DEPTH} are read")
        if self.act_fn not in ACTIVATIONS:
            raise UnsupportedKindError(
                f"act_fn {quote(self.act_fn)} is not served; served are {', '.join(ACTIVATIONS)}"
            )


def _check_counts(name: str, value: int, patterns: dict[str, int] | None, limits: PackageLimits) -> None:
    found = patterns or {}
    check_patterns(list(found), limits)
    for count in (value, *found.values()):
        if count < 1:
            raise PackageError(f"adapter_config.json: {name} is {count}; it must be at least 1")


class SupertuningConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of Super-Tuning: the share ``1 - sparsity`` of a weight's entries, and with ``r`` a low-rank update too."""

    sparsity: float = 0.99
    r: int | None = None
    lora_alpha: float | None = None
    save_precomputed_indices: bool = True

    KIND: ClassVar[str] = "supertuning"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {
        "init_weights",
        "lora_dropout",
        "select_top",  # which entries were chosen; the indices say so
    }
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ("I32",)

    @property
    def scale(self) -> float:
        """What the product of the low-rank factors is multiplied by."""
        assert self.r is not None
        return 2.0 if self.lora_alpha is None else self.lora_alpha / self.r

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if not 0 <= self.sparsity < 1:
            raise PackageError(f"adapter_config.json: sparsity is {self.sparsity}; values from 0 to below 1 are read")
        if self.r is not None:
            check_ranks([("r", self.r)], limits)
        if self.lora_alpha is not None and (self.r is None or not math.isfinite(self.lora_alpha)):
            raise PackageError("adapter_config.json: lora_alpha must be finite, and needs r")
        if not self.save_precomputed_indices:
            raise UnsupportedKindError(
                "the adapter was saved without its indices (save_precomputed_indices is false), which cannot be found "
                "again from a base that is kept in another precision; save it with save_precomputed_indices"
            )
