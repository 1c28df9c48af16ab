"""What an adapter must know of its base model: names, shapes, weights and fingerprint. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _no_weight(name: str) -> Tensor:
    raise AssertionError(f"this spec does not know the weight of {name}")


@dataclass(frozen=True, eq=False)
class BaseSpec:
    """The shapes of a base model that packages are checked against.

    Names are module paths inside the model (``model.layers.0.self_attn.q_proj``). ``linears`` maps each linear map,
    the output head ``head`` among them, to (out_features, in_features); ``biases`` maps every module that has a bias,
    linear or norm, to that bias; ``parameters`` maps each parameter of these modules, of norms and of the input
    embedding ``embedding`` to its shape before quantization, as a checkpoint stores it; ``transposed`` linear maps are
    stored [in_features, out_features]. ``experts`` maps each parameter of routed experts, in the order of its module,
    to (num_experts, in_features, out_features); gate's output features stand before up's, but alternate with them in
    ``interleaved`` ones. ``routers`` maps each module that chooses experts to the shape of its weight, (num_experts,
    in_features). ``tied``: the head's weight is the embedding's. ``weight(module)`` is the weight
    [out_features, in_features] of a linear map, or that of ``embedding`` [vocab_size, hidden_size], as the base
    computes with it (dequantized), in float32 on the CPU. ``embed_scale`` is what the embedding module multiplies its
    rows by. ``head_dim`` is 0 where keys and values, or layers, differ in size. ``is_encoder_decoder``: ``num_layers``
    and the heads are the decoder's, and ``embedding`` is empty, as adapters cannot act on an embedding that two stacks
    share. ``adapter_templates``: a chat template that comes with an adapter is used in the place of the base's.
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
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    experts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    interleaved: frozenset[str] = frozenset()
    routers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    embedding: str = ""
    embed_scale: float = 1.0
    head: str = ""
    tied: bool = False
    weight: Callable[[str], Tensor] = _no_weight
    chat_template_sha256: str | None = None
    adapter_templates: bool = False
    is_encoder_decoder: bool = False
