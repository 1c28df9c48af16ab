"""A package sorted by the linear maps that it adapts, held against what its configuration and the base say."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.config import PREFIX, TargetedConfig
from adapters.kinds.patterns import PatternMatcher, ends_of
from adapters.kinds.saved_adapter import (
    OTHER_BASE,
    SavedAdapter,
    by_module,
    expect_fractions,
    expect_shape,
    require,
    tensor_name,
)
from adapters.ops import Adapter, Bias, Op
from adapters.quoting import quote


def check_targets(
    found: set[str],
    base: BaseSpec,
    config: TargetedConfig,
    matcher: PatternMatcher,
    parameter: str,
    *,
    others: Mapping[str, str] | None = None,
    exempt: Collection[str] = (),
) -> None:
    """Hold the modules that have tensors against those that the config targets, as peft would match them.

    ``parameter`` is the tensor that every adapted linear map has; ``others`` are further modules that the kind adapts,
    and such a tensor of each. ``exempt`` modules may be targeted or not. Raises PackageError.
    """
    parameters = dict.fromkeys(base.linears, parameter) | dict(others or {})
    wanted = matcher.targets(parameters)
    if wanted is None:
        return
    wanted.difference_update(exempt)
    if missing := sorted(wanted - found):
        raise PackageError(
            f"tensor {quote(tensor_name(missing[0], parameters[missing[0]]))} is missing: target_modules names this "
            f"module ({len(missing)} of {len(wanted)} targeted modules have no tensors; is the package complete?)"
        )
    if extra := sorted(found - wanted):
        name = tensor_name(extra[0], parameters.get(extra[0], parameter))
        raise PackageError(
            f"tensor {quote(name)} belongs to a module that target_modules does not name, so peft would not apply it; "
            "correct target_modules in adapter_config.json"
        )
    listed = config.target_modules if isinstance(config.target_modules, list) else []
    names = {name for module in parameters for name in (module, *ends_of(module))} if listed else set[str]()
    for entry in listed:
        if entry not in names:
            raise PackageError(
                f"target_modules names {quote(entry)}, which matches no linear map of the base {quote(base.name)}; "
                "the adapter was made for another architecture, or the entry should be removed"
            )


def linear_shape(module: str, parameter: str, base: BaseSpec) -> tuple[int, int]:
    """(out_features, in_features) of a linear map that a package adapts. PackageError when the base has none."""
    if module not in base.linears:
        raise unknown_module(tensor_name(module, parameter), module, base)
    return base.linears[module]


def unknown_module(name: str, module: str, base: BaseSpec) -> PackageError:
    """What to raise for the tensor ``name`` of a ``module`` that the base does not have."""
    layer = re.search(r"\.(\d+)\.", module)
    if layer and len(layer[1]) < 6 and int(layer[1]) >= base.num_layers:
        why = f"the base has {base.num_layers} layers; the adapter was made for a deeper one"
    elif base.experts and re.search(r"\.experts\.\d+\.", module):
        why = (
            "experts are one parameter for each projection on this base: only LoRA of gate, up and down projections of "
            "experts that it has is converted"
        )
    else:
        why = "its names suggest that the adapter was made for another architecture, or a part that is not adapted"
    return PackageError(f"tensor {quote(name)} matches no linear map of the base {quote(base.name)}: {why}")


BIAS_NAME = re.compile(r"(?P<module>.+?)(\.base_layer)?\.bias")


def take_biases(package: SavedAdapter, base: BaseSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a package's tensors into the others, by name, and the trained biases, by module, in float32.

    Without a ``bias`` in its configuration there are none. PackageError for a bias of a module without one, of another
    size, or twice.
    """
    others: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    if getattr(package.config, "bias", "none") == "none":
        return dict(package.tensors), biases
    for name, tensor in package.tensors.items():
        found = BIAS_NAME.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if found is None:
            others[name] = tensor
            continue
        if found["module"] in biases:
            raise PackageError(f"tensor {quote(name)}: the package holds two biases for this module")
        biases[found["module"]] = trained_bias(found["module"], tensor, base)
    return others, biases


def own_bias(module: str, base: BaseSpec) -> Tensor:
    """The base's bias of ``module``, in float32 on the CPU."""
    return base.biases[module].detach().to("cpu", torch.float32)


def trained_bias(module: str, tensor: Tensor, base: BaseSpec) -> Tensor:
    """``tensor`` in float32, as the bias of ``module``. PackageError when the base has none there, or another size."""
    name = tensor_name(module, "bias")
    if module not in base.biases:
        raise PackageError(
            f"tensor {quote(name)}: the module {quote(module)} of {quote(base.name)} has no bias; "
            "the adapter was made for another base"
        )
    expect_fractions(name, tensor)
    expect_shape(name, tensor, tuple(base.biases[module].shape), OTHER_BASE)
    return tensor.float()


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map [out_features, in_features], and the tensors that the package has for it."""

    module: str
    out_features: int
    in_features: int
    found: Mapping[str, Tensor]

    def tensor(self, parameter: str, shape: tuple[int, ...], hint: str = "") -> Tensor:
        """``found[parameter]`` in float32. PackageError when it is missing, holds integers, or has another shape."""
        given = require(self.module, self.found, parameter)
        name = tensor_name(self.module, parameter)
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
    package: SavedAdapter, base: BaseSpec, parameters: Collection[str], embedding_parameter: str | None = None
) -> Layers:
    """Sort a package whose adapted modules have tensors ``parameters``, of which the first is in every module.

    ``embedding_parameter`` is the tensor that the input embedding has instead, for kinds that adapt it: a map from
    vocab_size.
    Raises PackageError for tensors of other names, modules that are no linear maps of the base, and modules that the
    configuration targets otherwise.
    """
    config = package.config
    assert isinstance(config, TargetedConfig)
    tensors, biases = take_biases(package, base)
    first = next(iter(parameters))
    known = parameters if embedding_parameter is None else [*parameters, embedding_parameter]
    found = by_module(tensors, known, config.KIND)
    others = {base.embedding: embedding_parameter} if embedding_parameter and base.embedding else {}
    shapes = dict.fromkeys(others, (base.hidden_size, base.vocab_size))
    layers = [
        Layer(module, *(shapes.get(module) or linear_shape(module, first, base)), entry)
        for module, entry in found.items()
    ]
    matcher = PatternMatcher(config)
    check_targets(set(found), base, config, matcher, first, others=others)
    return Layers(config.KIND, base, matcher, tuple(layers), biases)
