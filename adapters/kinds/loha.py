"""LoHa: the elementwise product of two low-rank matrices."""

from __future__ import annotations

from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.factors import LoHaConfig
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.ops import Adapter, AddOp, LowRank, Op
from adapters.ops.hadamard import Hadamard
from adapters.package import AdapterPackage

_A1, _B1, _A2, _B2 = _PARAMETERS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_MAX_RANK = 64  # up to here products of one matrix are worth r / 2 times the memory


def compile_loha(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a LoHa package (https://huggingface.co/papers/2108.06098).

    Semantics: ``W += ((w1_a @ w1_b) * (w2_a @ w2_b)) * alpha / r``, entry by entry.
    Shape: ``<module>.hada_w1_a``, ``hada_w2_a`` [out_features, r]; ``hada_w1_b``, ``hada_w2_b`` [r, in_features].
    """
    config = package.config
    assert isinstance(config, LoHaConfig)
    layers = sort_layers(package, base, _PARAMETERS)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = layers.matcher.rank(layer.module, config.r)
        scale = layers.matcher.alpha(layer.module, config.alpha) / r
        a1, a2 = (layer.tensor(name, (layer.out_features, r)) for name in (_A1, _A2))
        b1, b2 = (layer.tensor(name, (r, layer.in_features)) for name in (_B1, _B2))
        return (check_update(_product(a1 * scale, b1, a2, b2), layer.module),)

    return layers.compile(ops)


def _product(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> AddOp:
    """The product as one of rank r * r (the Khatri-Rao identity) while that is small, otherwise from its factors.

    Component ``i r + j`` has the factors ``a1[:, i] * a2[:, j]`` and ``b1[i] * b2[j]``.
    """
    rank = a1.shape[1] ** 2
    if rank > _MAX_RANK or rank >= min(len(a1), b1.shape[1]):
        return Hadamard(a1.T.contiguous(), b1, a2.T.contiguous(), b2)
    a = (b1[:, None] * b2[None]).flatten(0, 1)
    b = (a1.T[:, None] * a2.T[None]).flatten(0, 1)
    return LowRank(a.T.contiguous(), b)
