"""What the training loop needs of a model whose adapter peft does not train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ENCODED = (
    "start_from: the package holds what an encoder made, not the encoder that training goes on with; name a checkpoint "
    "of its run (OUTPUT/checkpoint-N), or for prefix tuning set method.projection to false"
)


PrefixShape = tuple[int, int, int]  # layers, KV heads, head size


def task_of(base: Any) -> str:
    """What peft calls the task of a ``base``'s adapter."""
    return "SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM"


def enable_checkpointing(model: Any, **arguments: Any) -> None:
    """Let ``model`` compute its activations again for the gradients; transformers renamed this during version 5."""
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)(**arguments)


class OwnModel(nn.Module):
    """A base with an adapter of ours. ``adapter_config`` is the configuration that its package holds."""

    def __init__(self, base: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.base_model = base
        self.adapter_config = config
        self.config = base.config

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        device: torch.device = self.base_model.device
        return device

    @property
    def generation_config(self) -> Any:
        """The base's."""
        return self.base_model.generation_config

    def forward(self, **inputs: Any) -> Any:
        """As the base's own."""
        return self.base_model(**inputs)

    def get_input_embeddings(self) -> Any:
        """The base's input embedding."""
        return self.base_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The base's output head."""
        return self.base_model.get_output_embeddings()

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """As the base's own, with inputs that let gradients reach the adapters of recomputed layers."""
        self.base_model.enable_input_require_grads()
        enable_checkpointing(self.base_model, **arguments)

    gradient_checkpointing_enable = activation_checkpointing_enable

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors, by the names that its package gives them."""
        raise NotImplementedError

    def load_adapter_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over ``tensors``, which have the names and shapes of ``adapter_tensors``. ConfigError if it cannot."""
        with torch.no_grad():
            for name, parameter in self.adapter_tensors().items():
                parameter.copy_(tensors[name])
