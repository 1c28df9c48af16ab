"""LoHa and LoKr: the elementwise product of two low-rank matrices, and the Kronecker product of two matrices."""

from __future__ import annotations

from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.factors.config import LoHaConfig, LoKrConfig
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.ops import Adapter, AddOp, LowRank, Op
from adapters.ops.products import Hadamard, Kron
from adapters.quoting import quote

_A1, _B1, _A2, _B2 = _LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_MAX_RANK = 64  # up to here products of one matrix are worth r / 2 times the memory


def compile_loha(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a LoHa package (https://huggingface.co/papers/2108.06098).

    Semantics: ``W += ((w1_a @ w1_b) * (w2_a @ w2_b)) * alpha / r``, entry by entry.
    Shape: ``<module>.hada_w1_a``, ``hada_w2_a`` [out_features, r]; ``hada_w1_b``, ``hada_w2_b`` [r, in_features].
    """
    config = package.config
    assert isinstance(config, LoHaConfig)
    layers = sort_layers(package, base, _LOHA)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = layers.matcher.rank(layer.module, config.r)
        scale = layers.matcher.alpha(layer.module, config.alpha) / r
        a1, a2 = (layer.tensor(name, (layer.out_features, r)) for name in (_A1, _A2))
        b1, b2 = (layer.tensor(name, (r, layer.in_features)) for name in (_B1, _B2))
        return (check_update(_hadamard(a1 * scale, b1, a2, b2), layer.module),)

    return layers.compile(ops)


def _hadamard(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> AddOp:
    """The product as one of rank r * r (the Khatri-Rao identity) while that is small, otherwise from its factors.

    Component ``i r + j`` has the factors ``a1[:, i] * a2[:, j]`` and ``b1[i] * b2[j]``.
    """
    rank = a1.shape[1] ** 2
    if rank > _MAX_RANK or rank >= min(len(a1), b1.shape[1]):
        return Hadamard(a1.T.contiguous(), b1, a2.T.contiguous(), b2)
    a = (b1[:, None] * b2[None]).flatten(0, 1)
    b = (a1.T[:, None] * a2.T[None]).flatten(0, 1)
    return LowRank(a.T.contiguous(), b.contiguous())


_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


def compile_lokr(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a LoKr package (https://huggingface.co/papers/2309.14859).

    Semantics: ``W += (w1 kron w2) * alpha / r``, where each of the two is saved whole or as a product ``a @ b``.
    Shape: ``<module>.lokr_w1`` [out1, in1], or ``lokr_w1_a`` [out1, r] and ``lokr_w1_b`` [r, in1]; likewise
    ``lokr_w2`` [out2, in2]; out1 out2 = out_features and in1 in2 = in_features, as ``decompose_factor`` divides them.
    """
    config = package.config
    assert isinstance(config, LoKrConfig)
    layers = sort_layers(package, base, _LOKR)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = layers.matcher.rank(layer.module, config.r)
        scale = layers.matcher.alpha(layer.module, config.alpha) / r
        return (check_update(_kron(layer, config, r, scale), layer.module),)

    return layers.compile(ops)


def _kron(layer: Layer, config: LoKrConfig, r: int, scale: float) -> Kron:
    (out1, out2), (in1, in2) = (
        divided(side, config.decompose_factor) for side in (layer.out_features, layer.in_features)
    )
    is_small = config.decompose_both and r < max(out1, in1) / 2
    w1, second = _factors(layer, "lokr_w1", (out1, in1), r if is_small else None)
    if second is not None:  # no larger than the square root of the weight
        w1 = w1 @ second
    w2, second = _factors(layer, "lokr_w2", (out2, in2), r if r < max(out2, in2) / 2 else None)
    if second is None:
        return Kron(w1 * scale, w2.T.contiguous())
    return Kron(w1 * scale, second.T.contiguous(), w2.T.contiguous())


def _factors(layer: Layer, name: str, shape: tuple[int, int], r: int | None) -> tuple[Tensor, Tensor | None]:
    """A matrix of ``shape``, whole or, with ``r``, in two factors, as peft saves it for these sides."""
    unused = [name] if r is not None else [f"{name}_a", f"{name}_b"]
    for other in unused:
        if other in layer.found:
            raise PackageError(
                f"tensor {quote(tensor_name(layer.module, other))} is not expected: with the r, decompose_both and "
                f"decompose_factor of adapter_config.json, {name} is saved {'in two factors' if r else 'whole'} here"
            )
    if r is None:
        return layer.tensor(name, shape), None
    return layer.tensor(f"{name}_a", (shape[0], r)), layer.tensor(f"{name}_b", (r, shape[1]))


def divided(side: int, factor: int) -> tuple[int, int]:
    """``side`` as a product of two numbers, the smaller one first unless ``factor`` divides it, as peft finds them.

    The first is ``factor`` where that divides ``side``; otherwise the largest divisor up to ``factor``, and without a
    factor (-1) the two are as near to each other as can be.
    """
    if factor > 0 and side % factor == 0:
        return factor, side // factor
    largest = side if factor == -1 else factor
    first, second = 1, side
    for divisor in range(2, side + 1):
        if first >= second:
            break
        if side % divisor:
            continue
        if divisor > largest:
            break
        first, second = divisor, side // divisor
    return min(first, second), max(first, second)
