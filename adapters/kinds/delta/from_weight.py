"""HiRA, OSF, DEFT and PaRa: updates made from the base's own weight.

HiRA is that weight times a low-rank matrix, entry by entry; OSF trains its small singular directions; DEFT and PaRa
remove a subspace of its outputs, and DEFT puts its own there.
"""

from __future__ import annotations

import torch

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.delta.config import DeftConfig, HiraConfig, OSFConfig
from adapters.kinds.dense import check_memory, check_update, dense_bytes, factor_bytes, factored
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import SavedAdapter, require, tensor_name
from adapters.ops import Adapter, LowRank, Op
from adapters.ops.matrices import Delta
from adapters.quoting import quote

_HIRA_A, _HIRA_B = "hira_A", "hira_B"


def compile_hira(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a HiRA package.

    Semantics: ``W += W * (B A)``, entry by entry, which has full rank: a ``Delta``. Over a quantized base ``W`` is
    what that base computes with, as in peft.
    Shape: ``<module>.hira_A`` [r, in_features]; ``<module>.hira_B`` [out_features, r].
    """
    config = package.config
    assert isinstance(config, HiraConfig)
    for name in package.tensors:
        if ".hira_embedding_" in name:
            raise UnsupportedKindError(f"tensor {quote(name)} belongs to HiRA on an embedding, which is not served")
    layers = sort_layers(package, base, [_HIRA_A, _HIRA_B])
    sizes = {it.module: dense_bytes(it.out_features, it.in_features) for it in layers.layers}
    check_memory(sizes, "HiRA", package.limits)

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = _hira_rank(layer, config.r, layers.matcher.rank(layer.module, config.r))
        a, b = layer.tensor(_HIRA_A, (r, layer.in_features)), layer.tensor(_HIRA_B, (layer.out_features, r))
        update = base.weight(layer.module) * (b @ a)
        return (check_update(Delta(update.T.contiguous()), layer.module),)

    return layers.compile(ops)


def _hira_rank(layer: Layer, r: int, from_pattern: int) -> int:
    """peft 0.21 makes new layers with ``r``, whatever ``rank_pattern`` says; both are read."""
    return from_pattern if require(layer.module, layer.found, _HIRA_A).shape[:1] == (from_pattern,) else r


_OSF_U, _OSF_S, _OSF_V = "osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"
_OSF_RULE = r"(?s:.*?)(?:{})(?s:.*)"  # peft: re.search(pattern, module)


def compile_osf(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of an OSF package.

    Semantics: ``W += U diag(S) V - U0 diag(S0) V0``, where the latter are the base's own directions ``effective_rank``
    and up, which are not saved: peft computes them from the weights it finds, and so does this. An update of rank
    ``2 low``, where ``low = min(W.shape) - effective_rank``, usually half of them, so that the matrix weighs less.
    Shape: ``<module>.osf_svd_params.U_low`` [out_features, low], ``S_low`` [low], ``V_low`` [low, in_features].
    """
    config = package.config
    assert isinstance(config, OSFConfig)
    layers = sort_layers(package, base, [_OSF_U, _OSF_S, _OSF_V])
    low = {layer.module: _osf_directions(layer, config, layers.matcher) for layer in layers.layers}
    sizes = {it.module: (it.out_features, it.in_features) for it in layers.layers}
    check_memory(
        {m: min(dense_bytes(*s), factor_bytes(*s, 2 * low[m])) for m, s in sizes.items()}, "OSF", package.limits
    )

    def ops(layer: Layer) -> tuple[Op, ...]:
        count, kept = low[layer.module], min(sizes[layer.module]) - low[layer.module]
        hint = f"effective_rank leaves {count} of {min(sizes[layer.module])} directions to train"
        u = layer.tensor(_OSF_U, (layer.out_features, count), hint)
        s, v = layer.tensor(_OSF_S, (count,), hint), layer.tensor(_OSF_V, (count, layer.in_features), hint)
        if not count:
            return ()
        u0, s0, v0 = torch.linalg.svd(base.weight(layer.module), full_matrices=False)
        left = torch.cat((u * s, -u0[:, kept:] * s0[kept:]), dim=1)
        return (check_update(factored(left, torch.cat((v, v0[kept:]))), layer.module),)

    return layers.compile(ops)


def _osf_directions(layer: Layer, config: OSFConfig, matcher: PatternMatcher) -> int:
    """How many singular directions are trained."""
    size = min(layer.out_features, layer.in_features)
    rank = matcher.value(config.rank_pattern, layer.module, config.effective_rank, _OSF_RULE)
    if rank is None:
        kept = size // 2
    elif isinstance(rank, float) and rank <= 1:
        kept = int(size * rank)
    else:
        kept = int(rank)
    return size - min(size, kept)


_DEFT_P, _DEFT_R = "deft_P", "deft_R"


def compile_deft(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a DEFT package.

    Semantics: ``W += Q (alpha / r R - S.T W)``, without ``R`` for PaRa; ``Q, S = P, relu(P)``, or both the orthonormal
    columns of ``P``'s QR decomposition. That has rank r: a ``LowRank``.
    Shape: ``<module>.deft_P`` [out_features, r], ``<module>.deft_R`` [r, in_features]; r is at most ``out_features``.
    """
    config = package.config
    assert isinstance(config, DeftConfig)
    layers = sort_layers(package, base, [_DEFT_P, _DEFT_R])

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = min(config.r, layer.out_features)
        p = layer.tensor(_DEFT_P, (layer.out_features, r))
        q, s = (p, torch.relu(p)) if config.decomposition_method == "relu" else (torch.linalg.qr(p).Q,) * 2
        inner = -(s.T @ base.weight(layer.module))
        if not config.para:
            inner = inner + layer.tensor(_DEFT_R, (r, layer.in_features)) * (config.alpha / r if config.alpha else 1.0)
        elif _DEFT_R in layer.found:
            raise PackageError(
                f"tensor {quote(tensor_name(layer.module, _DEFT_R))} is unknown: with para there is {_DEFT_P} alone"
            )
        return (check_update(LowRank(inner.T.contiguous(), q.T.contiguous()), layer.module),)

    return layers.compile(ops)
