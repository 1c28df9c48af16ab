"""The configurations of kinds that change activations; that of bottleneck adapters is hotswap's own."""

from __future__ import annotations

from typing import ClassVar, Literal

from typing_extensions import override

from adapters.kinds.config import TargetedConfig, check_finite_number, check_patterns, check_ranks
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

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        names = self.feedforward_modules
        check_patterns([names] if isinstance(names, str) else names or [], limits)


class BeftConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of BEFT: a bias is added to the output of every targeted module."""

    KIND: ClassVar[str] = "beft"
    IGNORED: ClassVar[frozenset[str]] = TargetedConfig.IGNORED | {"init_weights"}


class BottleneckConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of a bottleneck adapter.

    ``target_modules`` are the modules on whose output a bottleneck stands: those that end the attention and the
    feed-forward part of every layer (Houlsby), or the feed-forward part only (Pfeiffer). ``layout`` says which it was;
    the modules decide.
    """

    bottleneck_size: int
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"] = "relu"
    scale: float = 1.0
    layout: Literal["houlsby", "pfeiffer"] | None = None

    KIND: ClassVar[str] = "bottleneck"
    DESCRIPTIVE: ClassVar[frozenset[str]] = TargetedConfig.DESCRIPTIVE | {"layout"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_ranks([("bottleneck_size", self.bottleneck_size)], limits)
        check_finite_number("scale", self.scale)
