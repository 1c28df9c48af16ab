"""OSF: the small singular directions of the base's weight trained (orthogonal subspace fine-tuning)."""

from __future__ import annotations

import torch

from adapters.base import BaseSpec
from adapters.configs.delta import OSFConfig
from adapters.kinds.dense import check_memory, check_update, dense_bytes, factor_bytes, factored
from adapters.kinds.layers import Layer, sort_layers
from adapters.ops import Adapter, Op
from adapters.package import AdapterPackage
from adapters.patterns import PatternMatcher

_U, _S, _V = "osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"
_RULE = r"(?s:.*?)(?:{})(?s:.*)"  # peft: re.search(pattern, module)


def compile_osf(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of an OSF package.

    Semantics: ``W += U diag(S) V - U0 diag(S0) V0``, where the latter are the base's own directions ``effective_rank``
    and up, which are not saved: peft computes them from the weights it finds, and so does this. An update of rank
    ``2 low``, where ``low = min(W.shape) - effective_rank``, usually half of them, so that the matrix weighs less.
    Shape: ``<module>.osf_svd_params.U_low`` [out_features, low], ``S_low`` [low], ``V_low`` [low, in_features].
    """
    config = package.config
    assert isinstance(config, OSFConfig)
    layers = sort_layers(package, base, [_U, _S, _V])
    low = {layer.module: _trained(layer, config, layers.matcher) for layer in layers.layers}
    sizes = {it.module: (it.out_features, it.in_features) for it in layers.layers}
    check_memory(
        {m: min(dense_bytes(*s), factor_bytes(*s, 2 * low[m])) for m, s in sizes.items()}, "OSF", package.limits
    )

    def ops(layer: Layer) -> tuple[Op, ...]:
        count, kept = low[layer.module], min(sizes[layer.module]) - low[layer.module]
        hint = f"effective_rank leaves {count} of {min(sizes[layer.module])} directions to train"
        u = layer.tensor(_U, (layer.out_features, count), hint)
        s, v = layer.tensor(_S, (count,), hint), layer.tensor(_V, (count, layer.in_features), hint)
        if not count:
            return ()
        u0, s0, v0 = torch.linalg.svd(base.weight(layer.module), full_matrices=False)
        left = torch.cat((u * s, -u0[:, kept:] * s0[kept:]), dim=1)
        return (check_update(factored(left, torch.cat((v, v0[kept:]))), layer.module),)

    return layers.compile(ops)


def _trained(layer: Layer, config: OSFConfig, matcher: PatternMatcher) -> int:
    """How many singular directions are trained."""
    size = min(layer.out_features, layer.in_features)
    rank = matcher.value(config.rank_pattern, layer.module, config.effective_rank, _RULE)
    if rank is None:
        kept = size // 2
    elif isinstance(rank, float) and rank <= 1:
        kept = int(size * rank)
    else:
        kept = int(rank)
    return size - min(size, kept)
