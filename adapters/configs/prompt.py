"""The configurations of prefix tuning and prompt tuning."""

from __future__ import annotations

from typing import Any, ClassVar

from adapters.configs.common import CommonConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.limits import PackageLimits


class _PromptLearningConfig(CommonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of every kind that stands before the prompt. peft fills the counts in from the base's configuration."""

    num_virtual_tokens: int
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None

    def check(self, limits: PackageLimits) -> None:
        """See CommonConfig.check."""
        super().check(limits)
        if not 1 <= self.num_virtual_tokens <= limits.max_virtual_tokens:
            raise PackageError(
                f"adapter_config.json: num_virtual_tokens is {self.num_virtual_tokens}; "
                f"1 to {limits.max_virtual_tokens} are read"
            )
        if self.num_transformer_submodules not in (None, 1):
            raise UnsupportedKindError("adapters of encoder-decoder models (num_transformer_submodules) are not served")

    def semantics(self) -> dict[str, Any]:
        """See CommonConfig.semantics."""
        return {"peft_type": self.peft_type, "num_virtual_tokens": self.num_virtual_tokens}


class PrefixTuningConfig(_PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of prefix tuning. ``token_dim`` and ``num_attention_heads`` are of keys and values (KV heads)."""

    KIND: ClassVar[str] = "prefix"
    IGNORED: ClassVar[frozenset[str]] = CommonConfig.IGNORED | {
        "encoder_hidden_size",  # the projection is flattened into prompt_embeddings at save
        "init_weights",
        "prefix_projection",
    }


class PromptTuningConfig(_PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of prompt tuning. ``token_dim`` is the base's hidden size."""

    KIND: ClassVar[str] = "prompt"
    IGNORED: ClassVar[frozenset[str]] = CommonConfig.IGNORED | {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
