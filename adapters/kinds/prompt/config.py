"""The configurations of kinds that stand before the prompt: keys and values, or embedding rows."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import AdapterConfig
from adapters.limits import PackageLimits


class PromptLearningConfig(AdapterConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of every kind that stands before the prompt. peft fills the counts in from the base's configuration.

    It does not read ``trainable_token_indices`` here, which mean what they do in kinds that adapt modules.
    """

    num_virtual_tokens: int
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None

    WHOLE_PREFIX: ClassVar[str | None] = "base_model."

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if not 1 <= self.num_virtual_tokens <= limits.max_virtual_tokens:
            raise PackageError(
                f"adapter_config.json: num_virtual_tokens is {self.num_virtual_tokens}; "
                f"1 to {limits.max_virtual_tokens} are read"
            )
        if self.num_transformer_submodules not in (None, 1, 2):
            raise PackageError(
                f"adapter_config.json: num_transformer_submodules is {self.num_transformer_submodules}; peft writes 1, "
                "or 2 for an encoder-decoder"
            )

    @override
    def semantics(self) -> dict[str, Any]:
        found: dict[str, Any] = {"peft_type": self.peft_type, "num_virtual_tokens": self.num_virtual_tokens}
        tokens = self.trainable_token_indices
        return {**found, "trainable_token_indices": tokens} if tokens else found


class PrefixTuningConfig(PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of prefix tuning. ``token_dim`` and ``num_attention_heads`` are of keys and values (KV heads)."""

    KIND: ClassVar[str] = "prefix"
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {
        "encoder_hidden_size",  # the projection is flattened into prompt_embeddings at save
        "init_weights",
        "prefix_projection",
    }


class PromptTuningConfig(PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of prompt tuning. ``token_dim`` is the base's hidden size."""

    KIND: ClassVar[str] = "prompt"
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }


class CartridgeConfig(PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of Cartridges (https://huggingface.co/papers/2506.06266): saved as prefix tuning is."""

    KIND: ClassVar[str] = "cartridge"
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {"num_frozen_tokens"}


class PromptEncoderConfig(PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of P-Tuning v1. Its encoder, MLP or LSTM, is flattened into ``prompt_embeddings`` at save."""

    KIND: ClassVar[str] = "p_tuning"
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_reparameterization_type",
    }


class MultitaskPromptTuningConfig(PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of multitask prompt tuning: one shared prompt, and a low-rank factor of it for each task."""

    num_tasks: int = 1
    num_ranks: int = 1

    KIND: ClassVar[str] = "multitask_prompt"
    IGNORED: ClassVar[frozenset[str]] = PromptTuningConfig.IGNORED | {
        "prompt_tuning_init_state_dict_path",
        "prompt_tuning_init_task",
    }

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if not 1 <= self.num_ranks <= limits.max_rank:
            raise PackageError(f"adapter_config.json: num_ranks is {self.num_ranks}; 1 to {limits.max_rank} are read")
        if self.num_tasks != 1:
            raise UnsupportedKindError(
                f"the adapter holds {self.num_tasks} tasks, and a request names none; publish one adapter a task: "
                "keep that task's slice of prefix_task_cols and prefix_task_rows, and set num_tasks to 1"
            )

    @override
    def semantics(self) -> dict[str, Any]:
        return {**super().semantics(), "num_tasks": self.num_tasks, "num_ranks": self.num_ranks}


class CPTConfig(PromptLearningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of context-aware prompt tuning. Masks, loss and projection concern training: the sum is what is saved."""

    cpt_token_ids: list[int] | None = None

    KIND: ClassVar[str] = "cpt"
    IGNORED: ClassVar[frozenset[str]] = AdapterConfig.IGNORED | {
        "cpt_mask",
        "cpt_tokens_type_mask",
        "opt_loss_decay_factor",
        "opt_projection_epsilon",
        "opt_projection_format_epsilon",
        "opt_weighted_loss_type",
        "tokenizer_name_or_path",
    }
    DESCRIPTIVE: ClassVar[frozenset[str]] = AdapterConfig.DESCRIPTIVE | {"cpt_token_ids"}

    @override
    def check(self, limits: PackageLimits) -> None:
        super().check(limits)
        if self.cpt_token_ids is not None and len(self.cpt_token_ids) != self.num_virtual_tokens:
            raise PackageError(
                f"adapter_config.json: num_virtual_tokens is {self.num_virtual_tokens}, and cpt_token_ids are "
                f"{len(self.cpt_token_ids)}; peft writes equal numbers"
            )
