"""TinyLoRA: low-rank updates in singular directions of the base's weight, turned by a tiny vector."""

from __future__ import annotations

import torch

from adapters.base_spec import BaseSpec
from adapters.kinds.dense import BYTES, check_memory, check_update
from adapters.kinds.layers import Layer, Layers, check_targets, linear_shape, take_biases
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import SavedAdapter, by_module
from adapters.kinds.shared_factors.config import TinyLoraConfig
from adapters.kinds.shared_factors.projections import normal_matrices
from adapters.kinds.shared_factors.shared_tensors import SharedTensors
from adapters.ops import Adapter, LowRank, Op
from adapters.ops.embedding import LowRankEmbedding

_A, _B, _P = _PARAMETERS = ("tinylora_A", "tinylora_B", "tinylora_P")
_VECTOR = "tinylora_v"


def compile_tinylora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a TinyLoRA package (https://huggingface.co/papers/2602.04118).

    Semantics: ``y += x @ A.T @ R.T @ B.T``, and of the input embedding ``y += B[token] @ R @ A``, where
    ``R = sum over i of v[i] P[i]``. ``A`` and ``B`` are saved, singular directions of the weight; modules share ``v``
    in groups, one after the other in the order of the base's modules; projections ``P`` that were not saved are drawn
    again from ``projection_seed`` plus the module's number.
    Shape: ``tinylora_v.<group>`` [u]; ``<module>.tinylora_A`` [k, in_features]; ``tinylora_B`` [out_features, k];
    ``tinylora_P`` [u, k, k] with ``save_projection``, where k is r, or the module's smaller side when that is less. For
    the embedding in_features is hidden_size, and out_features vocab_size.
    """
    config = package.config
    assert isinstance(config, TinyLoraConfig)
    shared = SharedTensors(package, f"{_VECTOR}.")
    layers = _sorted(shared.rest, base, config)
    groups = groups_of(len(layers.layers), config.weight_tying)
    vectors = {group: shared.take(f"{_VECTOR}.{group}", (config.u,)) for group in dict.fromkeys(groups)}
    shared.check_empty("weight_tying and the number of adapted modules leave no group of this number")
    if not config.save_projection:
        check_memory({_P: BYTES * config.u * config.r**2}, config.KIND, package.limits)
    numbers = {layer.module: number for number, layer in enumerate(layers.layers)}

    def ops(layer: Layer) -> tuple[Op, ...]:
        number = numbers[layer.module]
        k = min(config.r, layer.out_features, layer.in_features)
        if config.save_projection:
            projections = layer.tensor(_P, (config.u, k, k))
        else:
            projections = normal_matrices(config.u, k, config.projection_seed + number)
        turned = torch.einsum("i,ijk->jk", vectors[groups[number]], projections)
        a, b = layer.tensor(_A, (k, layer.in_features)), layer.tensor(_B, (layer.out_features, k))
        if layer.module == base.embedding:
            return (check_update(LowRankEmbedding(b, turned @ a), layer.module),)
        return (check_update(LowRank(a.T.contiguous(), (b @ turned).T.contiguous()), layer.module),)

    return layers.compile(ops)


def groups_of(count: int, tying: float) -> list[int]:
    """The group of each of ``count`` modules, as peft divides them."""
    groups = max(1, round(count * (1 - tying)))
    size = max(1, count // groups)
    return [min(number // size, groups - 1) for number in range(count)]


def _sorted(package: SavedAdapter, base: BaseSpec, config: TinyLoraConfig) -> Layers:
    """The package by module, in the order of the base's modules, of which the embedding is the first."""
    tensors, biases = take_biases(package, base)
    found = by_module(tensors, _PARAMETERS if config.save_projection else _PARAMETERS[:2], config.KIND)
    shapes = {module: _shape(module, base) for module in found}
    matcher, others = PatternMatcher(config), {base.embedding: _A} if base.embedding else {}
    check_targets(set(found), base, config, matcher, _A, others=others)
    order = {module: number for number, module in enumerate([base.embedding, *base.linears])}
    layers = [Layer(module, *shapes[module], found[module]) for module in sorted(found, key=order.__getitem__)]
    return Layers(config.KIND, base, matcher, tuple(layers), biases)


def _shape(module: str, base: BaseSpec) -> tuple[int, int]:
    if module and module == base.embedding:
        return base.vocab_size, base.hidden_size
    return linear_shape(module, _A, base)
