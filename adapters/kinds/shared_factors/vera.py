"""VeRA and PVeRA: one pair of random factors for all modules, and two trained vectors for each."""

from __future__ import annotations

from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.kinds.dense import BYTES, check_memory, check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.kinds.shared_factors.config import VeraConfig
from adapters.kinds.shared_factors.projections import largest, uniform_pair
from adapters.kinds.shared_factors.shared_tensors import SharedTensors, corner
from adapters.limits import PackageLimits
from adapters.ops import Adapter, Op
from adapters.ops.low_rank import SharedLowRank


def compile_vera(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a VeRA package (https://huggingface.co/papers/2310.11454).

    Semantics: ``y += lambda_b * (B @ (lambda_d * (A @ x)))``, where ``A`` and ``B`` are corners of two matrices that
    all modules share.
    Shape: ``vera_A`` [r, at least in_features] and ``vera_B`` [at least out_features, r], both absent without
    ``save_projection``; ``<module>.vera_lambda_d`` [r]; ``<module>.vera_lambda_b`` [out_features].
    """
    return _compile(package, base, "vera", halves=1)


def compile_pvera(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a PVeRA package (https://huggingface.co/papers/2512.07703).

    Semantics: as VeRA, with the first halves of ``pvera_A`` and ``pvera_lambda_d``, which give the learned mean; the
    others give a variance that nothing reads unless the adapter samples.
    Shape: ``pvera_A`` [2 r, at least in_features]; ``<module>.pvera_lambda_d`` [2 r]; otherwise as VeRA.
    """
    return _compile(package, base, "pvera", halves=2)


def _compile(package: SavedAdapter, base: BaseSpec, name: str, halves: int) -> Adapter:
    config = package.config
    assert isinstance(config, VeraConfig)
    inner, outer = f"{name}_lambda_d", f"{name}_lambda_b"
    shared = SharedTensors(package, f"{name}_")
    layers = sort_layers(shared.rest, base, (outer, inner))
    outs, ins = largest((layer.out_features, layer.in_features) for layer in layers.layers)
    shapes = (halves * config.r, ins), (outs, config.r)
    if config.save_projection:
        projections = _saved(shared, name, *shapes)
    else:
        projections = _drawn(shared, config, *shapes, package.limits)
    shared.check_empty(f"{config.KIND} shares {name}_A and {name}_B alone, and those only with save_projection")
    a, b = projections[0][: config.r].T.contiguous(), projections[1].T.contiguous()

    def ops(layer: Layer) -> tuple[Op, ...]:
        scales = layer.tensor(inner, (halves * config.r,))[: config.r].clone()
        update = SharedLowRank(a, b, scales, layer.tensor(outer, (layer.out_features,)))
        return (check_update(update, layer.module),)

    return layers.compile(ops)


def _saved(shared: SharedTensors, name: str, a: tuple[int, int], b: tuple[int, int]) -> tuple[Tensor, Tensor]:
    advice = "adapter_config.json says that it was saved (save_projection is true)"
    first, second = shared.take(f"{name}_A", (a[0], None), advice), shared.take(f"{name}_B", (None, b[1]), advice)
    return corner(f"{name}_A", first, a), corner(f"{name}_B", second, b)


def _drawn(
    shared: SharedTensors, config: VeraConfig, a: tuple[int, int], b: tuple[int, int], limits: PackageLimits
) -> tuple[Tensor, Tensor]:
    shared.check_empty("adapter_config.json says that it was not saved (save_projection is false)")
    check_memory({"A": BYTES * a[0] * a[1], "B": BYTES * b[0] * b[1]}, config.KIND, limits)
    return uniform_pair(a, b, config.projection_prng_key)
