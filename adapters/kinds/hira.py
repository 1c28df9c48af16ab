"""HiRA: the base's weight times a low-rank matrix, entry by entry (https://openreview.net/pdf?id=TwJrTz9cRS)."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.delta import HiraConfig
from adapters.errors import UnsupportedKindError
from adapters.kinds.dense import check_memory, check_update, dense_bytes
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import take
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.delta import Delta
from adapters.package import AdapterPackage

_A, _B = "hira_A", "hira_B"


def compile_hira(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a HiRA package.

    Semantics: ``W += W * (B A)``, entry by entry, which has full rank: a ``Delta``. Over a quantized base ``W`` is
    what that base computes with, as in peft.
    Shape: ``<module>.hira_A`` [r, in_features]; ``<module>.hira_B`` [out_features, r].
    """
    config = package.config
    assert isinstance(config, HiraConfig)
    for name in package.tensors:
        if ".hira_embedding_" in name:
            raise UnsupportedKindError(f"tensor {shown(name)} belongs to HiRA on an embedding, which is not served")
    layers = sort_layers(package, base, [_A, _B])
    sizes = {it.module: dense_bytes(it.out_features, it.in_features) for it in layers.layers}
    check_memory(sizes, "HiRA", package.limits)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = _rank(layer, config.r, layers.matcher.rank(layer.module, config.r))
        a, b = layer.tensor(_A, (r, layer.in_features)), layer.tensor(_B, (layer.out_features, r))
        update = base.weight(layer.module) * (b @ a)
        return (check_update(Delta(update.T.contiguous()), layer.module),)

    return layers.compile(ops)


def _rank(layer: Layer, r: int, from_pattern: int) -> int:
    """peft 0.21 makes new layers with ``r``, whatever ``rank_pattern`` says; both are read."""
    return from_pattern if take(layer.module, layer.found, _A).shape[:1] == (from_pattern,) else r
