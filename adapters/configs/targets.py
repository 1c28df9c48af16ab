"""What the configurations of kinds that adapt modules by name share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from adapters.configs.common import CommonConfig
from adapters.errors import PackageError
from adapters.limits import PackageLimits


class TargetedConfig(CommonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that say which modules are adapted; ``adapters.patterns`` gives them peft's meaning.

    ``modules_to_save`` are trained whole (``adapters.kinds.saved``), ``trainable_token_indices`` single tokens of the
    embedding and the head (``adapters.kinds.tokens``); ``ensure_weight_tying`` keeps both alike in embedding and head.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False

    DESCRIPTIVE: ClassVar[frozenset[str]] = CommonConfig.DESCRIPTIVE | {
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    }  # fmt: skip

    @property
    def ranks(self) -> dict[str, int]:
        """Ranks by module pattern, empty for kinds without."""
        return {}

    @property
    def alphas(self) -> dict[str, float]:
        """Alphas by module pattern, empty for kinds without."""
        return {}

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        listed = [*self.ranks, *self.alphas]
        for names in (self.target_modules, self.exclude_modules, self.layers_pattern, self.modules_to_save):
            listed += [names] if isinstance(names, str) else names or []
        check_patterns(listed, limits)


def check_patterns(listed: Sequence[str], limits: PackageLimits) -> None:
    """PackageError when there are more module patterns, or longer ones, than the limits say."""
    if len(listed) > limits.max_patterns:
        raise PackageError(f"adapter_config.json has {len(listed)} module patterns; {limits.max_patterns} are read")
    if any(len(pattern) > limits.max_pattern_chars for pattern in listed):
        raise PackageError(
            f"adapter_config.json has a module pattern longer than {limits.max_pattern_chars} characters"
        )


def check_ranks(ranks: Iterable[tuple[str, int]], limits: PackageLimits) -> None:
    """PackageError for a rank, given with the name of its key, that is below 1 or above the limit."""
    for where, rank in ranks:
        if not 1 <= rank <= limits.max_rank:
            raise PackageError(f"adapter_config.json: {where} is {rank}; values from 1 to {limits.max_rank} are read")
