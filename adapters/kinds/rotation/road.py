"""RoAd: pairs of a linear map's output features rotated and scaled."""

from __future__ import annotations

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.rotation.config import RoadConfig
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.ops import Adapter, Op
from adapters.ops.rotation import RotatePairs
from adapters.quoting import quote

_ANGLES, _SCALES = "road_theta", "road_alpha"
_NUMBERS = {"road_1": 1, "road_2": 2, "road_4": 4}  # of each sort, for a pair of features


def compile_road(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a RoAd package (https://huggingface.co/papers/2409.00119).

    Semantics: of each group of ``group_size`` output features, feature ``i`` of the first half, ``p``, and of the
    second, ``q``, become ``p' = c p - d q`` and ``q' = c' q + d' p``, with ``c = s cos(t)`` and ``d = s sin(t)``.
    One angle ``t`` (``road_theta``) and one scale ``s`` (``road_alpha``) serve a pair (road_1), a feature (road_2), or
    each of ``c``, ``d``, ``c'`` and ``d'`` (road_4).
    Shape: ``<module>.road_theta``, ``<module>.road_alpha`` [out_features times 1/2, 1 or 2].
    """
    config = package.config
    assert isinstance(config, RoadConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        return (_pairs(layer, config),)

    return sort_layers(package, base, [_ANGLES, _SCALES]).compile(ops)


def _pairs(layer: Layer, config: RoadConfig) -> RotatePairs:
    if layer.out_features % config.group_size:
        raise PackageError(
            f"module {quote(layer.module)} has {layer.out_features} outputs, no multiple of group_size "
            f"{config.group_size}; was the adapter made for another base?"
        )
    shape = (layer.out_features * _NUMBERS[config.variant] // 2,)
    hint = "variant in adapter_config.json says so; or the adapter was made for another base"
    angles, scales = layer.tensor(_ANGLES, shape, hint), layer.tensor(_SCALES, shape, hint)
    half = config.group_size // 2
    if config.variant == "road_1":
        angles, scales = (t.view(-1, 1, half).expand(-1, 2, -1).flatten() for t in (angles, scales))
    if config.variant == "road_4":
        (angle, cross_angle), (scale, cross_scale) = (
            t.view(-1, 2, config.group_size).unbind(1) for t in (angles, scales)
        )
    else:
        angle, cross_angle, scale, cross_scale = angles, angles, scales, scales
    cross = (cross_scale * cross_angle.sin()).view(-1, 2, half)
    cross = cross * cross.new_tensor([-1.0, 1.0])[:, None]
    return RotatePairs((scale * angle.cos() - 1).flatten(), cross.flatten(), config.group_size)
