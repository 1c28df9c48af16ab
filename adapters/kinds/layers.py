"""What the kinds that change a linear map's weight share: a package sorted by the linear maps that it adapts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.targets import TargetedConfig
from adapters.kinds.biases import own_bias, take_biases
from adapters.kinds.check import expect_fractions, expect_shape
from adapters.kinds.names import by_module, key, take
from adapters.kinds.targets import check_targets, linear_shape
from adapters.ops import Adapter, Bias, Op
from adapters.package import AdapterPackage
from adapters.patterns import PatternMatcher


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map [out_features, in_features], and the tensors that the package has for it."""

    module: str
    out_features: int
    in_features: int
    found: Mapping[str, Tensor]

    def tensor(self, parameter: str, shape: tuple[int, ...], hint: str = "") -> Tensor:
        """``found[parameter]`` in float32. PackageError when it is missing, holds integers, or has another shape."""
        given = take(self.module, self.found, parameter)
        name = key(self.module, parameter)
        expect_fractions(name, given)
        expect_shape(name, given, shape, hint or self.hint)
        return given.float()

    @property
    def hint(self) -> str:
        """What a wrong shape suggests."""
        return f"the module is a map [{self.out_features}, {self.in_features}]: was the adapter made for another base?"


@dataclass(frozen=True, eq=False)
class Layers:
    """A package sorted by module. ``biases`` are the trained ones, in float32."""

    kind: str
    base: BaseSpec
    matcher: PatternMatcher
    layers: tuple[Layer, ...]
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    def compile(self, ops: Callable[[Layer], tuple[Op, ...]]) -> Adapter:
        """The adapter of what ``ops`` makes of each layer, with the trained biases after it."""
        made = {layer.module: listed for layer in self.layers if (listed := ops(layer))}
        for module, trained in self.biases.items():
            made[module] = (*made.get(module, ()), Bias(trained - own_bias(module, self.base)))
        return Adapter(self.kind, made)


def sort_layers(
    package: AdapterPackage, base: BaseSpec, parameters: Collection[str], embedded: str | None = None
) -> Layers:
    """Sort a package whose adapted modules have tensors ``parameters``, of which the first is in every module.

    ``embedded`` is the tensor that the input embedding has instead, for kinds that adapt it: a map from vocab_size.
    Raises PackageError for tensors of other names, modules that are no linear maps of the base, and modules that the
    configuration targets otherwise.
    """
    config = package.config
    assert isinstance(config, TargetedConfig)
    tensors: dict[str, Tensor] = dict(package.tensors)
    biases: dict[str, Tensor] = {}
    if getattr(config, "bias", "none") != "none":
        tensors, biases = take_biases(tensors, base)
    first = next(iter(parameters))
    found = by_module(tensors, parameters if embedded is None else [*parameters, embedded], config.KIND)
    others = {base.embedding: embedded} if embedded and base.embedding else {}
    shapes = dict.fromkeys(others, (base.hidden_size, base.vocab_size))
    layers = [
        Layer(module, *(shapes.get(module) or linear_shape(module, first, base)), entry)
        for module, entry in found.items()
    ]
    matcher = PatternMatcher(config)
    check_targets(set(found), base, config, matcher, first, others=others)
    return Layers(config.KIND, base, matcher, tuple(layers), biases)
