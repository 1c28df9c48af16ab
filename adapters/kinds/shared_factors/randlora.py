"""RandLoRA: full-rank updates from random bases that all modules share, and few trained numbers for each."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.dense import BYTES, check_memory, check_update
from adapters.kinds.layers import Layer, Layers, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.kinds.shared_factors.config import RandLoraConfig
from adapters.kinds.shared_factors.projections import largest, num_bases, sparse_bases, uniform_bases
from adapters.kinds.shared_factors.shared_tensors import SharedTensors, corner
from adapters.limits import PackageLimits
from adapters.ops import Adapter, Op
from adapters.ops.low_rank import RandomBases
from adapters.quoting import quote

_A, _B, _LAMBDA, _GAMMA = "randlora_A", "randlora_B", "randlora_lambda", "randlora_gamma"


def compile_randlora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a RandLoRA package (https://huggingface.co/papers/2502.00987).

    Semantics: ``RandomBases``, times ``randlora_alpha / r``. peft lays the bases out by rank and number on one side and
    by number and rank on the other, and so does the op.
    Shape: ``randlora_A`` [r, 1, at least m] and ``randlora_B`` [at least M, at least n, r], both absent without
    ``save_projection``; ``<module>.randlora_lambda`` [r, n]; ``<module>.randlora_gamma`` [n, m], where m and M are the
    smaller and the larger side of the module, and n is m / r rounded up. peft saves the first two with every module
    once more.
    """
    config = package.config
    assert isinstance(config, RandLoraConfig)
    shared = SharedTensors(package, "randlora_")
    layers = sort_layers(shared.rest, base, (_LAMBDA, _GAMMA, _A, _B))
    bases = _saved(shared, layers, config) if config.save_projection else _drawn(shared, layers, config, package.limits)
    shared.check_empty(f"RandLoRA shares {_A} and {_B} alone, and those only with save_projection")
    a, big = _corners(*bases, layers, config.r)

    def ops(layer: Layer) -> tuple[Op, ...]:
        side = min(layer.out_features, layer.in_features)
        n = num_bases(side, config.r)
        rows = layer.tensor(_LAMBDA, (config.r, n)) * (config.randlora_alpha / config.r)
        update = RandomBases(a, big, rows, layer.tensor(_GAMMA, (n, side)), layer.out_features)
        return (check_update(update, layer.module),)

    return layers.compile(ops)


def _corners(a: Tensor, b: Tensor, layers: Layers, r: int) -> tuple[Tensor, Tensor]:
    """What the modules use of both bases, as the op wants it. Shape: [r, m]; [n r, M]."""
    sides = [sorted((layer.out_features, layer.in_features)) for layer in layers.layers]
    small, large = (max(side[i] for side in sides) for i in (0, 1))
    a = corner(_A, a, (r, 1, small))[:, 0]
    b = corner(_B, b, (large, num_bases(small, r), r))
    return a.contiguous(), b.permute(1, 2, 0).flatten(0, 1).contiguous()


def _saved(shared: SharedTensors, layers: Layers, config: RandLoraConfig) -> tuple[Tensor, Tensor]:
    advice = "adapter_config.json says that it was saved (save_projection is true)"
    a, b = shared.take(_A, (config.r, 1, None), advice), shared.take(_B, (None, None, config.r), advice)
    for layer in layers.layers:
        for name, tensor in ((_A, a), (_B, b)):
            if name in layer.found and not torch.equal(layer.found[name].float(), tensor):
                raise PackageError(
                    f"tensor {quote(tensor_name(layer.module, name))} differs from base_model.{name}, which all "
                    "modules share"
                )
    return a, b


def _drawn(
    shared: SharedTensors, layers: Layers, config: RandLoraConfig, limits: PackageLimits
) -> tuple[Tensor, Tensor]:
    why = "adapter_config.json says that it was not saved (save_projection is false)"
    shared.check_empty(why)
    for layer in layers.layers:
        for name in {_A, _B} & layer.found.keys():
            raise PackageError(f"tensor {quote(tensor_name(layer.module, name))} is not expected: {why}")
    # peft makes bases for the largest number of outputs and of inputs, which need not be of one module
    sides = largest((layer.out_features, layer.in_features) for layer in layers.layers)
    side, other, r, seed = min(sides), max(sides), config.r, config.projection_prng_key
    check_memory({_A: BYTES * r * side, _B: BYTES * other * num_bases(side, r) * r}, config.KIND, limits)
    if config.sparse or config.very_sparse:
        return sparse_bases(side, other, r, seed, very=config.very_sparse)
    a, b = uniform_bases(side, other, r, seed)
    return a.float(), b.float()
