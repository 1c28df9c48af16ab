"""What stands before the prompt: keys and values, or embedding rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """Keys and values that stand before the prompt in every layer.

    Semantics: position ``p < num_virtual_tokens`` of layer ``l`` holds ``keys[l, p]``, ``values[l, p]``; keys are
    after the rotary embedding; the prompt's own positions start at ``num_virtual_tokens``.
    Shape: ``keys``, ``values`` [num_layers, num_virtual_tokens, num_kv_heads, head_dim].
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class PromptEmbeds:
    """Embedding rows that stand before the prompt.

    Semantics: position ``p < num_virtual_tokens`` has input embedding ``embeds[p]``; prompt positions follow.
    Shape: ``embeds`` [num_virtual_tokens, hidden_size].
    """

    embeds: Tensor
