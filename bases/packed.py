"""Linear maps and embeddings that keep their weights packed, for ``hotkernels`` to multiply by.

They are torch's modules but for the weight: in its place stands a parameter of the right shape, type and device that
holds no numbers of its own. It is NaN throughout, so that code which reads it past the module shows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from hotkernels.linear import PackedWeight, linear


class PackedLinear(nn.Linear):
    """A linear map over a packed weight.

    ``joined`` is the weight of this and of sibling maps of the same input, such as query, key and value, one below the
    other, and ``offset`` is where this one's rows begin in it; None where it stands alone. ``source_cls`` is the class
    of the module that a checkpoint has here, as bitsandbytes' modules call it.
    """

    joined: PackedWeight | None = None
    offset: int = 0

    def __init__(
        self, packed: PackedWeight, bias: Tensor | None, source_cls: type[nn.Module], weight: nn.Parameter
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.packed = packed
        self.source_cls = source_cls
        self.weight = weight
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.__dict__["_placeholder"] = weight

    @override
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight is not self.__dict__["_placeholder"]:  # an adapter's own, by functional_call
            return F.linear(x, weight, self.bias)
        y = linear(x.reshape(-1, self.in_features), self.packed, self.bias)
        return y.view(*x.shape[:-1], self.out_features)


class PackedEmbedding(nn.Embedding):
    """An embedding over a packed table, which is in memory once with an output head that is tied to it."""

    packed: PackedWeight

    @override
    def forward(self, input_ids: Tensor) -> Tensor:
        weight = self.weight
        if weight is not self.__dict__["_placeholder"]:
            return F.embedding(input_ids, weight)
        return self.packed.take(input_ids.flatten()).view(*input_ids.shape, self.embedding_dim)


def looks_up(module: nn.Embedding, table: PackedWeight, weight: nn.Parameter) -> bool:
    """Let ``module`` look its rows up in ``table``; False, and as it was, when its class does so in a way of its own.

    What a class does with rows that torch's module gives it, such as scaling them, it goes on doing.
    """
    own, before = type(module), module.weight
    ids = torch.arange(min(4, module.num_embeddings))[None]
    with torch.no_grad():
        wanted = module(ids).float()
        module.__class__ = _packed_class(own)
        module.weight = weight
        module.__dict__.update(packed=table, _placeholder=weight)
        # loaded weights may be rounded to bf16, and the class may round its scale to it
        if torch.allclose(module(ids).float(), wanted, rtol=2**-5, atol=1e-6):
            return True
    module.__class__ = own
    module.weight = before
    return False


def _packed_class(own: type[nn.Embedding]) -> type[nn.Embedding]:
    """``own`` with PackedEmbedding in the place of torch's class: after what ``own`` adds, as in the original."""
    return PackedEmbedding if own is nn.Embedding else type(f"Packed{own.__name__}", (own, PackedEmbedding), {})


def placeholder(out_features: int, in_features: int) -> nn.Parameter:
    """What stands in the place of a weight: 4 bytes, seen as [out_features, in_features]."""
    return nn.Parameter(torch.full((), torch.nan).expand(out_features, in_features), requires_grad=False)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether it stands in the place of a packed weight."""
    return tensor.dim() == 2 and tensor.stride() == (0, 0)
