"""What an adapter must know of its base model: names, shapes, fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class BaseSpec:
    """The shapes of a base model that packages are checked against.

    Names are module paths inside the model (``model.layers.0.self_attn.q_proj``). ``linears`` maps each linear map
    to (out_features, in_features); ``biases`` maps every module that has a bias, linear or norm, to that bias.
    """

    name: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    chat_template_sha256: str | None = None
