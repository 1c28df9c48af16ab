"""The configurations of hotswap's own formats: bottleneck adapters and Freeze (peft has neither)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from adapters.configs.common import CommonConfig
from adapters.configs.targets import TargetedConfig, check_ranks
from adapters.errors import PackageError
from adapters.limits import PackageLimits


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

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        check_ranks([("bottleneck_size", self.bottleneck_size)], limits)
        if not math.isfinite(self.scale):
            raise PackageError("adapter_config.json: scale must be finite")


class FreezeConfig(CommonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of a Freeze adapter: all of the base was frozen but for whole ``layers`` and single ``modules``.

    ``layers`` are indices from 0; ``modules`` are module paths outside of them. Every parameter of both is saved.
    ``trainable_token_indices`` are as in peft's kinds.
    """

    layers: list[int] | None = None
    modules: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    KIND: ClassVar[str] = "freeze"
    DESCRIPTIVE: ClassVar[frozenset[str]] = CommonConfig.DESCRIPTIVE | {"layers", "modules"}

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        count = len(self.layers or ()) + len(self.modules or ())
        if not count:
            raise PackageError("adapter_config.json names neither layers nor modules that were trained")
        if count > limits.max_patterns:
            raise PackageError(f"adapter_config.json names {count} layers and modules; {limits.max_patterns} are read")

    def semantics(self) -> dict[str, Any]:
        """See CommonConfig.semantics. Packages without single tokens keep the digest that they had before these."""
        found = super().semantics()
        return {name: value for name, value in found.items() if value or name != "trainable_token_indices"}
