"""The configurations of kinds that train a vector for each module: gains (IA3), norms (LN tuning), biases (BEFT)."""

from __future__ import annotations

from typing import ClassVar

from adapters.configs.targets import TargetedConfig, check_patterns
from adapters.limits import PackageLimits


class IA3Config(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of (IA)³. The inputs of ``feedforward_modules`` are scaled, the outputs of all others."""

    feedforward_modules: list[str] | str | None = None

    KIND: ClassVar[str] = "ia3"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {
        "fan_in_fan_out",  # how the base stores its own weight
        "init_ia3_weights",
    }
    DESCRIPTIVE: ClassVar[frozenset[str]] = TargetedConfig.DESCRIPTIVE | {"feedforward_modules"}

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        names = self.feedforward_modules
        check_patterns([names] if isinstance(names, str) else names or [], limits)


class LnTuningConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of LN tuning: the targeted modules are trained whole."""

    KIND: ClassVar[str] = "ln_tuning"


class BeftConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of BEFT: a bias is added to the output of every targeted module."""

    KIND: ClassVar[str] = "beft"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"init_weights"}
