"""A base with any adapter, and a head of its own in the place of the output head, behind the last norm."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from adapters.kinds.head_names import HEAD_MODULES
from bases.architecture import has_own_code
from trainer.base_model import Base
from trainer.config.task import Pooling
from trainer.errors import ConfigError
from trainer.methods import trainable_parameters
from trainer.methods.own_model import enable_checkpointing

HEAD = "score"  # transformers' name of a classifier's head, and this module's attribute
HeadPooling = Pooling | Literal["all"]
"""As ``Pooling``, or all tokens, each by itself."""


class PooledModel(nn.Module):
    """``model``, whose hidden states are pooled to one for each text, and mapped by the head where there is one.

    As transformers' classifiers: ``score(last hidden state of the last token)``, the head without a bias; of tokens
    that of each, the head as theirs is. The hidden states are those that leave the base's backbone, whatever adapter
    acts in it; its output head computes nothing.
    """

    def __init__(self, model: Any, base: Base, pooling: HeadPooling, num_outputs: int = 0) -> None:
        """``num_outputs`` 0: no head. Seed torch before. Raises ConfigError for a base that cannot be read so."""
        super().__init__()
        _check(base)
        self.adapted = model
        self.pooling = pooling
        self.score: nn.Linear | None = None
        width: int = base.model.config.get_text_config().hidden_size
        self.head_name, has_bias = head_of_tokens(base.model.config) if pooling == "all" else (HEAD, False)
        if num_outputs:
            self.score = nn.Linear(width, num_outputs, bias=has_bias, device=base.model.device)
            nn.init.normal_(self.score.weight, std=getattr(base.model.config, "initializer_range", 0.02))
            if has_bias:
                nn.init.zeros_(self.score.bias)
        self.backbone: str = base.model.base_model_prefix
        self._states: Tensor | None = None
        head = base.model.get_output_embeddings()
        self._hooks = [
            base.model.base_model.register_forward_hook(self._keep),
            head.register_forward_pre_hook(_nothing),
        ]
        trained = {id(parameter) for parameter in trainable_parameters(model).values()}
        inputs = {id(parameter) for parameter in base.model.get_input_embeddings().parameters()}
        if any(id(parameter) in trained - inputs for parameter in head.parameters()) or hasattr(head, "base_layer"):
            raise ConfigError("method: it trains the output head, which writes tokens and reads none; take it out")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the texts come to, [texts, outputs] in float32: by the head, or without one [texts, hidden_size].

        Of all tokens [texts, length, outputs].

        Shape: both [texts, length], padded on either side; prefixes of our own want padding on the right.
        """
        try:
            self.adapted(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            assert self._states is not None, "the backbone runs in every forward pass"
            pooled = pool(self._states, attention_mask, self.pooling)
        finally:
            self._states = None
        return pooled if self.score is None else self.score(pooled)

    def close(self) -> None:
        """Let the base write again."""
        for hook in self._hooks:
            hook.remove()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.adapted.device
        return device

    @property
    def config(self) -> Any:
        """The base's."""
        return self.adapted.config

    def get_input_embeddings(self) -> Any:
        """The base's input embedding."""
        return self.adapted.get_input_embeddings()

    def activation_checkpointing_enable(self, **arguments: Any) -> None:
        """As the model's own."""
        enable_checkpointing(self.adapted, **arguments)

    gradient_checkpointing_enable = activation_checkpointing_enable

    def _keep(self, _module: nn.Module, _args: Any, out: Any) -> None:
        self._states = out[0] if isinstance(out, tuple) else out.last_hidden_state


def head_of_tokens(config: Any) -> tuple[str, bool]:
    """What transformers calls the head of a base's model for tokens, and whether it has a bias.

    Where transformers has no such model of the base, the head is as most have it.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForTokenClassification.from_config(copy.deepcopy(config))
    except ValueError:
        return HEAD, True
    for name in sorted(HEAD_MODULES):
        if isinstance(head := getattr(model, name, None), nn.Linear):
            return name, head.bias is not None
    return HEAD, True


def pool(states: Tensor, attention_mask: Tensor, pooling: HeadPooling) -> Tensor:
    """``states`` [texts, virtual + length, width] to [texts, width] in float32, of the tokens of ``attention_mask``.

    All of them to [texts, length, width].
    """
    states = states[:, states.shape[1] - attention_mask.shape[1] :]  # prompt tuning puts its own rows first
    if pooling == "all":
        return states.float()
    if pooling == "mean":
        weights = attention_mask[..., None].float()
        return (states.float() * weights).sum(1) / weights.sum(1)
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), last].float()


def unit(vectors: Tensor) -> Tensor:
    """``vectors`` [..., width] brought to length 1."""
    return F.normalize(vectors, dim=-1)


def _nothing(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """No token is written: the head is given no hidden state."""
    return (args[0][..., :0, :], *args[1:]) if args else None


def _check(base: Base) -> None:
    if base.is_encoder_decoder:
        raise ConfigError(
            "task: the base is an encoder-decoder, and texts are read by decoders only; take another base"
        )
    if any(map(has_own_code, base.model.modules())) or base.model.base_model is base.model:
        raise ConfigError(
            "task: the base has code of its own, whose hidden states may be laid out as it likes; take a base of an "
            "architecture that transformers knows"
        )
