"""(IA)³ and BEFT: a gain for every feature of a map's input or output; a bias for every output feature."""

from __future__ import annotations

from adapters.base_spec import BaseSpec
from adapters.kinds.activations.config import IA3Config
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.ops import Adapter, Bias, Op
from adapters.ops.activations import Magnitude, ScaleInput

_IA3_GAINS = "ia3_l"


def compile_ia3(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of an (IA)³ package (https://huggingface.co/papers/2205.05638).

    Semantics: ``y = W (l * x) + bias`` for feed-forward modules, ``y = l * (W x + bias)`` for others.
    Shape: ``<module>.ia3_l`` [1, in_features] of feed-forward modules, [out_features, 1] of others.
    """
    config = package.config
    assert isinstance(config, IA3Config)
    layers = sort_layers(package, base, [_IA3_GAINS])

    def ops(layer: Layer) -> tuple[Op, ...]:
        is_input = _is_feedforward(layer, config, layers.matcher)
        hint = (
            f"feedforward_modules in adapter_config.json {'names' if is_input else 'does not name'} this module, "
            f"so its {'inputs' if is_input else 'outputs'} are scaled; or the adapter was made for another base"
        )
        gains = layer.tensor(_IA3_GAINS, (1, layer.in_features) if is_input else (layer.out_features, 1), hint)
        excess = gains.flatten() - 1
        return (ScaleInput(excess) if is_input else Magnitude(excess),)

    return layers.compile(ops)


def _is_feedforward(layer: Layer, config: IA3Config, matcher: PatternMatcher) -> bool:
    """What ``feedforward_modules`` says of the layer, by peft's rule for it; the tensor's shape where it is absent."""
    names = config.feedforward_modules
    if names is None:
        return tuple(layer.found[_IA3_GAINS].shape) == (1, layer.in_features)
    if isinstance(names, str):
        return matcher.matches(names, layer.module)
    return any(layer.module.endswith(name) for name in names)


_BEFT_BIAS = "beft_bias"


def compile_beft(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a BEFT package (https://arxiv.org/abs/2509.15974).

    Semantics: ``y += beft_bias``.
    Shape: ``<module>.beft_bias`` [1, out_features].
    """
    layers = sort_layers(package, base, [_BEFT_BIAS])
    return layers.compile(lambda layer: (Bias(layer.tensor(_BEFT_BIAS, (1, layer.out_features)).flatten()),))
