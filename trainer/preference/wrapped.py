"""What trl's trainers ask of any model that they train."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from trainer.base_model import Base


class WrappedModel(nn.Module):
    """``model``, with a configuration of its own: trl writes the pad token into it."""

    def __init__(self, model: Any, base: Base) -> None:
        super().__init__()
        self.model = model
        self.config = copy.deepcopy(base.model.config)

    def add_model_tags(self, tags: Any) -> None:
        """trl's marks for a hub; ours is no model to upload."""

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """As the model's own."""
        renamed = getattr(self.model, "activation_checkpointing_enable", None)  # during transformers 5
        (renamed or self.model.gradient_checkpointing_enable)(**arguments)

    gradient_checkpointing_enable = activation_checkpointing_enable
