"""The configuration of MiSS."""

from __future__ import annotations

from typing import ClassVar, Literal

from adapters.configs.targets import TargetedConfig
from adapters.errors import PackageError
from adapters.limits import PackageLimits


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

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        if self.r < 1:
            raise PackageError(f"adapter_config.json: r is {self.r}; it must be at least 1")
        if self.init_weights == "mini" and self.mini_r < 1:
            raise PackageError(f"adapter_config.json: mini_r is {self.mini_r}; it must be at least 1")
