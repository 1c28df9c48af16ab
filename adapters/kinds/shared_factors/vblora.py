"""VB-LoRA: low-rank updates whose factors are made of a few vectors of one bank."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.dense import check_memory, check_update, factor_bytes
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, require, tensor_name
from adapters.kinds.shared_factors.config import VBLoraConfig
from adapters.kinds.shared_factors.shared_tensors import SharedTensors, read_indices
from adapters.ops import Adapter, LowRank, Op
from adapters.quoting import quote

_BANK = "vblora_vector_bank"
_A, _B = _LOGITS = ("vblora_logits_A", "vblora_logits_B")
_INDICES, _WEIGHTS = "_topk_indices", "_topk_weights"
_ROUNDING = 1e-2  # weights are mixed in half precision at worst


def compile_vblora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a VB-LoRA package (https://huggingface.co/papers/2405.15179).

    Semantics: ``y += x @ A.T @ B.T``, where a piece of ``vector_length`` entries of a row of ``A``, or of a column of
    ``B``, is the sum of the bank's vectors with the ``topk`` largest logits, weighted by the softmax of these. The
    factors are made at load: an adapter weighs what its low-rank updates do.
    Shape: ``vblora_vector_bank`` [num_vectors, vector_length]; ``<module>.vblora_logits_A`` [r, in_features /
    vector_length, num_vectors]; ``<module>.vblora_logits_B`` [out_features / vector_length, r, num_vectors]; with
    ``save_only_topk_weights`` ``..._topk_indices`` [.., .., topk] and ``..._topk_weights`` [.., .., topk - 1] instead.
    """
    config = package.config
    assert isinstance(config, VBLoraConfig)
    shared = SharedTensors(package, "vblora_")
    saved = [f"{n}{end}" for n in _LOGITS for end in (_INDICES, _WEIGHTS)] if config.save_only_topk_weights else _LOGITS
    layers = sort_layers(shared.rest, base, saved)
    bank = shared.take(_BANK, (config.num_vectors, config.vector_length))
    shared.check_empty("a package shares the vector bank alone")
    sizes = {it.module: factor_bytes(it.out_features, it.in_features, config.r) for it in layers.layers}
    check_memory(sizes, config.KIND, package.limits)

    def ops(layer: Layer) -> tuple[Op, ...]:
        a = _mixed(layer, _A, (config.r, _pieces(layer, layer.in_features, config)), bank, config)
        b = _mixed(layer, _B, (_pieces(layer, layer.out_features, config), config.r), bank, config)
        # [r, pieces, length] and [pieces, r, length]
        update = LowRank(a.flatten(1).T.contiguous(), b.transpose(0, 1).flatten(1).contiguous())
        return (check_update(update, layer.module),)

    return layers.compile(ops)


def _pieces(layer: Layer, side: int, config: VBLoraConfig) -> int:
    if side % config.vector_length:
        raise PackageError(
            f"module {quote(layer.module)} has a side of {side}, no multiple of vector_length {config.vector_length}"
        )
    return side // config.vector_length


def _mixed(layer: Layer, name: str, shape: tuple[int, int], bank: Tensor, config: VBLoraConfig) -> Tensor:
    """Mixtures of the bank's vectors. Shape: [*shape, vector_length]."""
    if config.save_only_topk_weights:
        indices, weights = _saved_mixture(layer, name, shape, config)
    else:
        logits, indices = layer.tensor(name, (*shape, len(bank))).topk(config.topk, dim=-1)
        weights = logits.softmax(-1)
    mixed = torch.zeros(*shape, bank.shape[1])
    for k in range(config.topk):  # one vector after the other, to need no more memory than the factor
        mixed += weights[..., k, None] * bank[indices[..., k]]
    return mixed


def _saved_mixture(layer: Layer, name: str, shape: tuple[int, int], config: VBLoraConfig) -> tuple[Tensor, Tensor]:
    """Indices and weights. The last weight is what is missing to one."""
    given = require(layer.module, layer.found, f"{name}{_INDICES}")
    full = tensor_name(layer.module, f"{name}{_INDICES}")
    indices = read_indices(full, given, (*shape, config.topk), config.num_vectors)
    ordered = indices.sort(-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise PackageError(f"tensor {quote(full)} names a vector twice for one piece")
    first = layer.tensor(f"{name}{_WEIGHTS}", (*shape, config.topk - 1))
    last = 1 - first.sum(-1, keepdim=True)
    if bool((first < 0).any()) or bool((last < -_ROUNDING).any()):
        raise PackageError(
            f"tensor {quote(tensor_name(layer.module, name + _WEIGHTS))} holds no weights that add up to one"
        )
    return indices, torch.cat([first, last.clamp(min=0)], dim=-1)
