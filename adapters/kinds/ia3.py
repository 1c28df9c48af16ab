"""(IA)³: a gain for every feature, of a feed-forward map's input or of another map's output."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.scale import IA3Config
from adapters.kinds.layers import Layer, sort_layers
from adapters.ops import Adapter, Op
from adapters.ops.dora import Magnitude
from adapters.ops.scale import ScaleInput
from adapters.package import AdapterPackage
from adapters.patterns import PatternMatcher

_GAINS = "ia3_l"


def compile_ia3(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of an (IA)³ package (https://huggingface.co/papers/2205.05638).

    Semantics: ``y = W (l * x) + bias`` for feed-forward modules, ``y = l * (W x + bias)`` for others.
    Shape: ``<module>.ia3_l`` [1, in_features] of feed-forward modules, [out_features, 1] of others.
    """
    config = package.config
    assert isinstance(config, IA3Config)
    layers = sort_layers(package, base, [_GAINS])

    def ops(layer: Layer) -> tuple[Op, ...]:
        is_input = _is_feedforward(layer, config, layers.matcher)
        hint = (
            f"feedforward_modules in adapter_config.json {'names' if is_input else 'does not name'} this module, "
            f"so its {'inputs' if is_input else 'outputs'} are scaled; or the adapter was made for another base"
        )
        gains = layer.tensor(_GAINS, (1, layer.in_features) if is_input else (layer.out_features, 1), hint)
        excess = gains.flatten() - 1
        return (ScaleInput(excess) if is_input else Magnitude(excess),)

    return layers.compile(ops)


def _is_feedforward(layer: Layer, config: IA3Config, matcher: PatternMatcher) -> bool:
    """What ``feedforward_modules`` says of the layer, by peft's rule for it; the tensor's shape where it is absent."""
    names = config.feedforward_modules
    if names is None:
        return tuple(layer.found[_GAINS].shape) == (1, layer.in_features)
    if isinstance(names, str):
        return matcher.matches(names, layer.module)
    return any(layer.module.endswith(name) for name in names)
