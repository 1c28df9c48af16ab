"""The configurations of kinds whose modules share factors: random ones, a bank of vectors, a basis of the weights."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import STORAGE, BiasedConfig, check_finite_number, check_ranks
from adapters.limits import PackageLimits


class SharedConfig(BiasedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the kinds here have in common."""

    IGNORED: ClassVar[frozenset[str]] = BiasedConfig.IGNORED | STORAGE


class VeraConfig(SharedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of VeRA. Random factors that were not saved are drawn again from ``projection_prng_key``."""

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True

    KIND: ClassVar[str] = "vera"
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {"d_initial", "vera_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        check_seed("projection_prng_key", self.projection_prng_key)


class PveraConfig(VeraConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of PVeRA, which computes with the mean of what it learned unless ``sample_at_inference``."""

    KIND: ClassVar[str] = "pvera"
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {"d_initial", "generator_seed", "pvera_dropout"}
    REFUSED: ClassVar[dict[str, str]] = {
        "sample_at_inference": "adapters that draw their update anew at every call, so that no two answers agree,"
    }


class RandLoraConfig(SharedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of RandLoRA. Random bases that were not saved are drawn again from ``projection_prng_key``."""

    r: int = 32
    randlora_alpha: float = 640
    projection_prng_key: int = 0
    save_projection: bool = True
    sparse: bool = False
    very_sparse: bool = False

    KIND: ClassVar[str] = "randlora"
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {"randlora_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        check_seed("projection_prng_key", self.projection_prng_key)
        check_finite_number("randlora_alpha", self.randlora_alpha)


class VBLoraConfig(SharedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of VB-LoRA: each piece of a factor is a mixture of ``topk`` vectors of one bank."""

    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    save_only_topk_weights: bool = False

    KIND: ClassVar[str] = "vblora"
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ("U8", "I16", "I32", "I64")
    EMPTY_TENSORS: ClassVar[bool] = True  # with a topk of one there are no weights to save
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {
        "init_logits_std", "init_vector_bank_bound", "vblora_dropout",
    }  # fmt: skip

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        if self.vector_length < 1:
            raise PackageError(f"adapter_config.json: vector_length is {self.vector_length}; it must be at least 1")
        if not 1 <= self.topk <= self.num_vectors:
            raise PackageError(
                f"adapter_config.json: topk is {self.topk}; values from 1 to num_vectors {self.num_vectors} are read"
            )


class TinyLoraConfig(SharedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of TinyLoRA. Random projections that were not saved are drawn again from ``projection_seed``."""

    r: int = 2
    u: int = 64
    weight_tying: float = 0.0
    projection_seed: int = 42
    save_projection: bool = True

    KIND: ClassVar[str] = "tinylora"
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {"init_v_bound", "tinylora_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        if self.u < 1:
            raise PackageError(f"adapter_config.json: u is {self.u}; it must be at least 1")
        if not 0 <= self.weight_tying <= 1:
            raise PackageError(f"adapter_config.json: weight_tying is {self.weight_tying}; it lies between 0 and 1")
        check_seed("projection_seed", self.projection_seed)


class UniLoraConfig(SharedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of Uni-LoRA. Indices that were not saved are drawn again from ``proj_seed``."""

    r: int = 4
    proj_seed: int = 42
    theta_d_length: int = 256
    save_indices: bool = False

    KIND: ClassVar[str] = "unilora"
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ("I64",)
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {"init_theta_d_bound", "unilora_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)
        if self.theta_d_length < 1:
            raise PackageError(f"adapter_config.json: theta_d_length is {self.theta_d_length}; it must be at least 1")
        check_seed("proj_seed", self.proj_seed, smallest=0)

    @override
    def semantics(self) -> dict[str, Any]:
        """Without saved indices no tensor says which modules are adapted."""
        named = (self.target_modules, self.exclude_modules, self.layers_to_transform, self.layers_pattern)
        listed = [sorted(names, key=str) if isinstance(names, list) else names for names in named]
        return {**super().semantics(), "targets": None if self.save_indices else listed}


class FrodConfig(SharedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of FRoD. The keys that concern how its basis was found do not matter once it is saved."""

    save_projection: bool = True

    KIND: ClassVar[str] = "frod"
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ("I64",)
    EMPTY_TENSORS: ClassVar[bool] = True  # with a sparse_rate of zero
    IGNORED: ClassVar[frozenset[str]] = SharedConfig.IGNORED | {
        "frod_dropout", "progressbar", "projection_prng_key", "regularization_alpha", "runtime_offload_base_weight",
        "sparse_rate",
    }  # fmt: skip

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if not self.save_projection:
            raise UnsupportedKindError(
                "adapter_config.json says that the basis was not saved (save_projection is false). Found again from "
                "the base's weights it differs with their rounding, and in its signs from machine to machine, so that "
                "the adapter would compute something else; save it again with save_projection=True"
            )


def check_seed(name: str, value: int, smallest: int = -(2**63)) -> None:
    """PackageError for a number that no generator takes for a seed."""
    if not smallest <= value < 2**64 - 2**32:  # TinyLoRA adds the number of the module
        raise PackageError(f"adapter_config.json: {name} is {value}, which is no seed of 64 bits")
