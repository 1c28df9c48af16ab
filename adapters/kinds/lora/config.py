"""The configuration of LoRA adapters: rsLoRA, rank and alpha patterns, biases, and the variants that peft knows."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import msgspec
from typing_extensions import override

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import (
    AdapterConfig,
    AlphaPattern,
    RankPattern,
    TargetedConfig,
    check_finite_number,
    check_pattern_ranks,
    check_patterns,
)
from adapters.limits import PackageLimits
from adapters.quoting import quote

_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_VARIANTS = ("use_dora", "use_bdlora", "alora_invocation_tokens", "velora_config", "monteclora_config")


class BlockDiagonal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which factors of BD-LoRA are block-diagonal: those of modules whose names contain one of the texts given."""

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: int = 1
    match_strict: bool = True

    def factor(self, module: str) -> Literal["A", "B"] | None:
        """The factor of ``module`` that is block-diagonal, if any. PackageError when that is not clear."""
        a = any(part in module for part in self.target_modules_bd_a or [])
        b = any(part in module for part in self.target_modules_bd_b or [])
        if a and b:
            raise PackageError(
                f"use_bdlora says that both factors of {quote(module)} are block-diagonal; peft does not"
            )
        if not (a or b) and self.match_strict:
            raise PackageError(f"use_bdlora with match_strict does not say which factor of {quote(module)} it means")
        return "A" if a else "B" if b else None


class LoraConfig(RankPattern, AlphaPattern, TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of a LoRA configuration. Patterns keep the order of the file: the first that matches a module counts.

    VeLoRA and MonteCLoRA change only how the factors are trained. ``qalora_group_size`` counts with ``use_qalora``.
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    use_dora: bool = False
    use_bdlora: BlockDiagonal | None = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    target_parameters: list[str] | None = None
    alora_invocation_tokens: list[int] | None = None
    velora_config: dict[str, Any] | None = None
    monteclora_config: dict[str, Any] | None = None
    init_lora_weights: bool | str | None = True

    KIND: ClassVar[str] = "lora"
    WIDENS: ClassVar[bool] = True
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {
        "corda_config",  # these four say how weights were initialised; init_lora_weights says what that did
        "eva_config",
        "lora_ga_config",
        "loftq_config",
        "fan_in_fan_out",  # how the base stores its own weight; A and B have the same shapes either way
        "lora_dropout",
        "megatron_core",  # a module name, read only with megatron_config
        "runtime_config",
    }
    REFUSED: ClassVar[dict[str, str]] = {
        **AdapterConfig.REFUSED,
        "arrow_config": "Arrow routers, which choose among other adapters for each token,",
        "kasa_config": "KaSA adapters, which are made for a base with truncated weights,",
        "layer_replication": "adapters that replicate layers of the base",
        "megatron_config": "Megatron adapters",
    }

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        check_pattern_ranks(self.r, self.ranks, limits)
        for alpha in (self.lora_alpha, *self.alphas.values()):
            check_finite_number("lora_alpha", alpha)
        for key, value in (("qalora_group_size", self.qalora_group_size), ("nblocks", self.nblocks)):
            if value < 1:
                raise PackageError(f"adapter_config.json: {key} must be at least 1, not {value}")
        self._check_init()
        self._check_parameters(limits)
        self._check_variants()
        self._check_invocation(limits)

    @property
    def nblocks(self) -> int:
        """Blocks of a block-diagonal factor."""
        return self.use_bdlora.nblocks if self.use_bdlora is not None else 1

    @property
    def invocation_tokens(self) -> tuple[int, ...]:
        """What activates the adapter; empty when it is always active."""
        return tuple(self.alora_invocation_tokens or ())

    def scale(self, r: int, alpha: float) -> float:
        """What ``B @ A`` is multiplied by."""
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    @override
    def semantics(self) -> dict[str, Any]:
        """Which modules are targeted is said by the tensors."""
        always = {
            "peft_type": self.peft_type,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": list(self.ranks.items()),
            "alpha_pattern": list(self.alphas.items()),
            "bias": self.bias,
        }
        options = {
            "target_parameters": sorted(self.target_parameters or []),
            "use_dora": self.use_dora,
            "lora_bias": self.lora_bias,
            "use_bdlora": msgspec.to_builtins(self.use_bdlora),
            "qalora_group_size": self.qalora_group_size if self.use_qalora else None,
            "alora_invocation_tokens": self.alora_invocation_tokens,
            "trainable_token_indices": self.trainable_token_indices,
            "modules_to_save": self.modules_to_save,
            "ensure_weight_tying": self.ensure_weight_tying,
        }
        return always | {key: value for key, value in options.items() if value}

    def _check_init(self) -> None:
        init = self.init_lora_weights
        if not isinstance(init, str):
            return
        if init.lower().startswith(_BASE_CHANGING_INITS):
            raise UnsupportedKindError(
                f"init_lora_weights {quote(init)} changed the base's weights, so these tensors do not fit the original "
                "base; save again with path_initial_model_for_weight_conversion, which writes a plain LoRA"
            )
        if init.lower() not in _PLAIN_INITS:
            raise PackageError(f"adapter_config.json: init_lora_weights {quote(init)} is unknown")

    def _check_variants(self) -> None:
        """Peft has no layer for two variants at once; of DoRA's with a bias on lora_B it says so itself."""
        used = [name for name in _VARIANTS if getattr(self, name)]
        if self.init_lora_weights == "mica":
            used.append("init_lora_weights 'mica'")
        if self.use_dora and self.lora_bias:
            used.append("lora_bias")
        if len(used) > 1:
            raise UnsupportedKindError(
                f"adapter_config.json combines {' and '.join(used)}, for which peft defines no meaning"
            )

    def _check_parameters(self, limits: PackageLimits) -> None:
        check_patterns(self.target_parameters or [], limits)
        variants = (*_VARIANTS, "lora_bias", "alora_invocation_tokens")
        for name in variants if self.target_parameters else ():
            if getattr(self, name):
                raise UnsupportedKindError(
                    f"adapter_config.json combines target_parameters and {name}, for which peft defines no meaning"
                )

    def _check_invocation(self, limits: PackageLimits) -> None:
        tokens = self.invocation_tokens
        if not tokens:
            return
        if len(tokens) > limits.max_virtual_tokens or min(tokens) < 0:
            raise PackageError(
                "adapter_config.json: alora_invocation_tokens must be token ids, at most "
                f"{limits.max_virtual_tokens} of them"
            )
        if self.bias != "none" or self.modules_to_save or self.trainable_token_indices:
            raise UnsupportedKindError(
                "adapter_config.json sets bias, modules_to_save or trainable_token_indices beside "
                "alora_invocation_tokens: they would act on the tokens before the invocation too, which are to be the "
                "base's; train without them"
            )
