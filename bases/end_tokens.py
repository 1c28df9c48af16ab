"""Which tokens end what a model writes."""

from __future__ import annotations

from transformers import PreTrainedModel


def end_token_ids(model: PreTrainedModel) -> list[int]:
    """Of the generation config, else of the model's config."""
    found = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = model.config.eos_token_id if found is None else found
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [int(found)]
