"""Full fine-tuning: the base itself is trained, and exported as a new base (``trainer.full_export``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.base_model import Base
from trainer.config.methods import FullMethod
from trainer.errors import ConfigError
from trainer.methods.own_model import OwnModel
from trainer.methods.token_rows import initial_rows


class FullModel(OwnModel):
    """A base whose every parameter is trained."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, {})
        base.requires_grad_(True)


def apply_full(base: Base, _method: FullMethod) -> FullModel:
    """Every parameter trainable, with rows of its own for added tokens. ConfigError for a quantized checkpoint."""
    if any(not parameter.is_floating_point() for parameter in base.model.parameters()):
        raise ConfigError("method: the base's checkpoint is quantized, so full fine-tuning cannot train its weights")
    if base.tokens:
        add_rows(base)
    return FullModel(base.model)


@torch.no_grad()
def add_rows(base: Base) -> None:
    """Let embedding and head have rows for the base's ``tokens``, where they do not; the head's bias begins as 0."""
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    tables: list[Tensor] = [embedding.weight] if head.weight is embedding.weight else [embedding.weight, head.weight]
    rows = [initial_rows(base, table) for table in tables]
    size = max(token.id for token in base.tokens) + 1
    if size > len(embedding.weight):
        base.model.resize_token_embeddings(size, mean_resizing=False)
    ids = torch.tensor([token.id for token in base.tokens], device=rows[0].device)
    for module, new in zip((base.model.get_input_embeddings(), base.model.get_output_embeddings()), rows, strict=False):
        module.weight[ids] = new.to(module.weight.dtype)
