"""Prefix tuning where attention cannot be reached: the prefix is handed to the model as a cache, as peft does it.

For encoder-decoders, whose attention adds a bias of distances to every key, and for models with code of their own,
which attend as they like and count positions as they like.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from typing_extensions import override

from bases.architecture import has_own_code
from bases.own_cache import OWN_ERRORS, CacheForm, cache_form
from trainer.base_model import Base
from trainer.config.methods import PrefixMethod
from trainer.errors import ConfigError, first_line
from trainer.methods.own_model import PrefixShape
from trainer.methods.prefix import PrefixModel, configured_shape


class CachedPrefixModel(PrefixModel):
    """A decoder that is given trained keys and values as what it has computed before."""

    def __init__(self, base: Base, method: PrefixMethod, form: CacheForm) -> None:
        super().__init__(base, method, form.shape)
        self._form = form

    @override
    def forward(self, **inputs: Any) -> Any:
        """The base's answer with the prefix before ``input_ids`` [batch, length], padded on the right."""
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        inputs["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.tokens), mask], 1)
        return self.base_model(**inputs, past_key_values=self._cache(len(mask)))

    @override
    def activation_checkpointing_enable(self, **_arguments: Any) -> None:
        raise ConfigError(
            "training.gradient_checkpointing: layers that are computed again take no prefix with this base; set it to "
            "false"
        )

    gradient_checkpointing_enable = activation_checkpointing_enable

    def _cache(self, rows: int) -> Any:
        layers = self._layers()[:, :, None].expand(-1, -1, rows, -1, -1, -1)
        return self._form.make(layers.to(self.base_model.dtype))

    def _layers(self) -> Tensor:
        """Keys and values of the layers that have a prefix, [layers, 2, heads, tokens, head_dim]."""
        return self.prefix()


class Seq2SeqPrefixModel(CachedPrefixModel):
    """An encoder-decoder whose decoder sees trained keys and values first."""

    @override
    def forward(self, **inputs: Any) -> Any:
        """The base's answer with the prefix before ``decoder_input_ids`` [batch, length], padded on the right."""
        cache = EncoderDecoderCache(self._cache(len(inputs["input_ids"])), DynamicCache())
        return self.base_model(**inputs, past_key_values=cache)

    @override
    def _layers(self) -> Tensor:
        """peft cuts what it has saved for all layers in fours: decoder layer i gets saved layer 2 i, in a circle."""
        saved = self.prefix()
        count = int(getattr(self.config, "num_decoder_layers", None) or len(saved))
        return saved[[2 * layer % len(saved) for layer in range(count)]]


def apply_cached_prefix(base: Base, method: PrefixMethod) -> CachedPrefixModel:
    """Prefix tuning by a cache. ConfigError when the base does not look at one."""
    try:
        kind = Seq2SeqPrefixModel if base.is_encoder_decoder else CachedPrefixModel
        model = kind(base, method, cache_form(base.model) if has_own_code(base.model) else CacheForm(*kv_shape(base)))
        _check_effect(model)
    except OWN_ERRORS as error:
        raise ConfigError(f"method: prefix tuning does not fit this base: {first_line(error)}") from error
    return model


def kv_shape(base: Base) -> PrefixShape:
    """What ``base`` stores for a token. Raises ValueError where that cannot be told."""
    if base.is_encoder_decoder:
        config = base.model.config
        return max(config.num_layers, config.num_decoder_layers), config.num_heads, config.d_kv
    return cache_form(base.model).shape if has_own_code(base.model) else configured_shape(base.model.config)


def _check_effect(model: CachedPrefixModel) -> None:
    """Raise ValueError unless every layer's keys and values have a part in the answer."""
    if model.device.type == "meta":
        return
    ids = torch.zeros(1, 3, dtype=torch.long, device=model.device)
    inputs = {"input_ids": ids, "use_cache": False}
    if isinstance(model, Seq2SeqPrefixModel):
        inputs["decoder_input_ids"] = ids
    with torch.enable_grad():
        layers = model._layers().detach().requires_grad_(True)
        kept, model._layers = model._layers, lambda: layers  # type: ignore[method-assign]
        try:
            logits = model(**inputs).logits
            (found,) = torch.autograd.grad(logits.float().square().sum(), layers)
        finally:
            model._layers = kept  # type: ignore[method-assign]
    if not bool((found.flatten(2).abs().sum(-1) > 0).all()):
        raise ValueError("its code does not look at the keys and values that it is given")
