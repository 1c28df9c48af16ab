"""The configurations of kinds that rotate a module's input or output: OFT, BOFT, HRA, RoAd."""

from __future__ import annotations

import math
import re
from typing import ClassVar, Literal

from typing_extensions import override

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import TargetedConfig, check_ranks
from adapters.limits import PackageLimits
from adapters.quoting import quote

_MAX_TERMS = 100
_MAX_FACTORS = 32
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})")


class OFTConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of OFT: ``r`` blocks of any size, or blocks of ``oft_block_size``; the other of the two is 0.

    ``use_cayley_neumann`` has no default: that of peft has changed.
    """

    r: int
    oft_block_size: int
    use_cayley_neumann: bool
    num_cayley_neumann_terms: int = 5
    block_share: bool = False
    coft: bool = False
    eps: float = 6e-5
    bias: Literal["none", "all", "oft_only"] = "none"

    KIND: ClassVar[str] = "oft"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"fan_in_fan_out", "init_weights", "module_dropout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        _check_one_of("r", self.r, "oft_block_size", self.oft_block_size)
        if not math.isfinite(self.eps) or self.eps <= 0:
            raise PackageError("adapter_config.json: eps must be a finite number above 0")
        if self.use_cayley_neumann:
            self._check_series()

    def _check_series(self) -> None:
        if not 1 <= self.num_cayley_neumann_terms <= _MAX_TERMS:
            raise PackageError(
                f"adapter_config.json: num_cayley_neumann_terms is {self.num_cayley_neumann_terms}; "
                f"values from 1 to {_MAX_TERMS} are read"
            )
        version = _VERSION.match(self.peft_version or "")
        if version is None or (int(version[1]), int(version[2])) < (0, 18):
            raise UnsupportedKindError(
                f"the adapter says peft_version {quote(self.peft_version)}, and peft 0.18 changed what "
                "use_cayley_neumann computes; train it again with peft 0.18 or newer"
            )


class BOFTConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of BOFT: blocks of ``boft_block_size``, or ``boft_block_num`` blocks; the other of the two is 0.

    Where its CUDA extension does not build, peft trains one factor whatever ``boft_n_butterfly_factor`` says.
    """

    boft_block_size: int
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    bias: Literal["none", "all", "boft_only"] = "none"

    KIND: ClassVar[str] = "boft"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"boft_dropout", "fan_in_fan_out", "init_weights"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        _check_one_of("boft_block_size", self.boft_block_size, "boft_block_num", self.boft_block_num)
        if not 1 <= self.boft_n_butterfly_factor <= _MAX_FACTORS:
            raise PackageError(
                f"adapter_config.json: boft_n_butterfly_factor is {self.boft_n_butterfly_factor}; "
                f"values from 1 to {_MAX_FACTORS} are read"
            )


class HRAConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of HRA: ``r`` reflections, made orthogonal first with ``apply_GS``."""

    r: int
    apply_GS: bool = False  # noqa: N815 - peft's name
    bias: Literal["none", "all", "hra_only"] = "none"

    KIND: ClassVar[str] = "hra"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"init_weights"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("r", self.r)], limits)


class RoadConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of RoAd: variants with one, two or four numbers of each kind for a pair of output features."""

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    group_size: int = 64

    KIND: ClassVar[str] = "road"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"init_weights"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if self.group_size < 2 or self.group_size % 2:
            raise PackageError(f"adapter_config.json: group_size is {self.group_size}; it must be even, and at least 2")


def _check_one_of(one: str, first: int, other: str, second: int) -> None:
    if min(first, second) != 0 or max(first, second) < 1:
        raise PackageError(f"adapter_config.json: {one} is {first} and {other} is {second}; one of them must be 0")
