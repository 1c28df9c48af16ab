"""The configuration of Super-Tuning."""

from __future__ import annotations

import math
from typing import ClassVar

from adapters.configs.targets import TargetedConfig, check_ranks
from adapters.errors import PackageError, UnsupportedKindError
from adapters.limits import PackageLimits


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

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
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
