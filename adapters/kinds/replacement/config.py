"""The configurations of LN tuning, of trainable tokens, and of Freeze, hotswap's own format (peft has none)."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

from adapters.errors import PackageError
from adapters.kinds.config import AdapterConfig, TargetedConfig
from adapters.limits import PackageLimits


class LnTuningConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of LN tuning: the targeted modules are trained whole."""

    KIND: ClassVar[str] = "ln_tuning"


class TrainableTokensConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of trainable tokens. ``target_modules`` is the input embedding when absent."""

    token_indices: list[int]

    KIND: ClassVar[str] = "trainable_tokens"
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {"init_weights"}
    DESCRIPTIVE: ClassVar[frozenset[str]] = AdapterConfig.DESCRIPTIVE

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if not self.token_indices:
            raise PackageError("adapter_config.json: token_indices names no token")


class FreezeConfig(AdapterConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of a Freeze adapter: all of the base was frozen but for whole ``layers`` and single ``modules``.

    ``layers`` are indices from 0; ``modules`` are module paths outside of them. Every parameter of both is saved.
    """

    layers: list[int] | None = None
    modules: list[str] | None = None

    KIND: ClassVar[str] = "freeze"
    DESCRIPTIVE: ClassVar[frozenset[str]] = AdapterConfig.DESCRIPTIVE | {"layers", "modules"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        count = len(self.layers or ()) + len(self.modules or ())
        if not count:
            raise PackageError("adapter_config.json names neither layers nor modules that were trained")
        if count > limits.max_patterns:
            raise PackageError(f"adapter_config.json names {count} layers and modules; {limits.max_patterns} are read")

    @override
    def semantics(self) -> dict[str, Any]:
        """Packages without single tokens keep the digest that they had before these."""
        found = super().semantics()
        return {name: value for name, value in found.items() if value or name != "trainable_token_indices"}
