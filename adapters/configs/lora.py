"""The configuration of LoRA adapters, with rsLoRA, rank_pattern, alpha_pattern and bias."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from adapters.configs.common import CommonConfig
from adapters.configs.targets import TargetedConfig, check_ranks
from adapters.errors import PackageError, UnsupportedKindError
from adapters.limits import PackageLimits
from adapters.names import shown

_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraConfig(TargetedConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of a LoRA configuration. Patterns keep the order of the file: the first that matches a module counts."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | str | None = True

    KIND: ClassVar[str] = "lora"
    IGNORED: ClassVar[frozenset[str]] = CommonConfig.IGNORED | {
        "corda_config",  # these four say how weights were initialised; init_lora_weights says what that did
        "eva_config",
        "lora_ga_config",
        "loftq_config",
        "fan_in_fan_out",  # how the base stores its own weight; A and B have the same shapes either way
        "lora_dropout",
        "megatron_core",  # a module name, read only with megatron_config
        "qalora_group_size",  # read only with use_qalora
        "runtime_config",
    }
    REFUSED: ClassVar[dict[str, str]] = {
        **CommonConfig.REFUSED,
        "alora_invocation_tokens": "activated LoRA (aLoRA) adapters",
        "arrow_config": "Arrow routers",
        "ensure_weight_tying": "adapters of tied embeddings",
        "kasa_config": "KaSA adapters",
        "layer_replication": "adapters that replicate layers",
        "lora_bias": "adapters with a bias on lora_B",
        "megatron_config": "Megatron adapters",
        "monteclora_config": "MonteCLoRA adapters",
        "target_parameters": "adapters of bare parameters",
        "trainable_token_indices": "trained token embeddings",
        "use_bdlora": "block-diagonal LoRA adapters",
        "use_dora": "DoRA adapters",
        "use_qalora": "QALoRA adapters",
        "velora_config": "VeLoRA adapters",
    }

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        check_ranks([("r", self.r), *((f"rank_pattern {shown(k)}", v) for k, v in self.ranks.items())], limits)
        for alpha in (self.lora_alpha, *self.alphas.values()):
            if not math.isfinite(alpha):
                raise PackageError("adapter_config.json: lora_alpha must be finite")
        self._check_init()

    @property
    def ranks(self) -> dict[str, int]:
        """``rank_pattern``, empty when absent."""
        return self.rank_pattern or {}

    @property
    def alphas(self) -> dict[str, float]:
        """``alpha_pattern``, empty when absent."""
        return self.alpha_pattern or {}

    def scale(self, r: int, alpha: float) -> float:
        """What ``B @ A`` is multiplied by."""
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def semantics(self) -> dict[str, Any]:
        """See CommonConfig.semantics. Which modules are targeted is said by the tensors."""
        return {
            "peft_type": self.peft_type,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "use_rslora": self.use_rslora,
            "rank_pattern": list(self.ranks.items()),
            "alpha_pattern": list(self.alphas.items()),
            "bias": self.bias,
        }

    def _check_init(self) -> None:
        init = self.init_lora_weights
        if not isinstance(init, str):
            return
        if init.lower().startswith(_BASE_CHANGING_INITS):
            raise UnsupportedKindError(
                f"init_lora_weights {shown(init)} changed the base's weights, so these tensors do not fit the original "
                "base; save again with path_initial_model_for_weight_conversion, which writes a plain LoRA"
            )
        if init.lower() not in _PLAIN_INITS:
            raise PackageError(f"adapter_config.json: init_lora_weights {shown(init)} is unknown")
