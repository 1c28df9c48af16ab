"""The configuration of trainable tokens."""

from __future__ import annotations

from typing import ClassVar

from adapters.configs.common import CommonConfig
from adapters.configs.targets import TargetedConfig
from adapters.errors import PackageError
from adapters.limits import PackageLimits


class TrainableTokensConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of trainable tokens. ``target_modules`` is the input embedding when absent."""

    token_indices: list[int]

    KIND: ClassVar[str] = "trainable_tokens"
    IGNORED: ClassVar[frozenset[str]] = CommonConfig.IGNORED | {"init_weights"}
    DESCRIPTIVE: ClassVar[frozenset[str]] = CommonConfig.DESCRIPTIVE

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        if not self.token_indices:
            raise PackageError("adapter_config.json: token_indices names no token")
