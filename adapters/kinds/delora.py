"""DeLoRA: low-rank updates of a bounded norm."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.factors import DeloraConfig
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.ops import Adapter, LowRank, Op
from adapters.package import AdapterPackage

_A, _B, _BOUND, _NORMS = _PARAMETERS = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
_SMALLEST = 1e-4


def compile_delora(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a DeLoRA package (https://huggingface.co/papers/2503.18225).

    Semantics: ``y += ((x * w_norm) @ A.T * c) @ B.T``, where ``c = lambda / r / (|A[i]| |B[:, i]|)`` for each component
    and norms count at least 1e-4. ``w_norm`` are those of the columns of the weight that the adapter was trained on.
    Shape: ``<module>.delora_A`` [r, in_features]; ``delora_B`` [out_features, r]; ``delora_lambda`` [1];
    ``delora_w_norm`` [in_features].
    """
    config = package.config
    assert isinstance(config, DeloraConfig)
    layers = sort_layers(package, base, _PARAMETERS)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = layers.matcher.rank(layer.module, config.r)
        a, b = layer.tensor(_A, (r, layer.in_features)), layer.tensor(_B, (layer.out_features, r))
        lengths = a.norm(dim=1).clamp(min=_SMALLEST) * b.norm(dim=0).clamp(min=_SMALLEST)
        scales = layer.tensor(_BOUND, (1,)) / r / lengths
        inputs = a * layer.tensor(_NORMS, (layer.in_features,))
        update = LowRank(inputs.T.contiguous(), (b * scales).T.contiguous())
        return (check_update(update, layer.module),)

    return layers.compile(ops)
