"""DEFT and PaRa: a subspace of the base's outputs removed, and DEFT's own put there (Decompositional fine-tuning)."""

from __future__ import annotations

import torch

from adapters.base import BaseSpec
from adapters.configs.delta import DeftConfig
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key
from adapters.names import shown
from adapters.ops import Adapter, LowRank, Op
from adapters.package import AdapterPackage

_P, _R = "deft_P", "deft_R"


def compile_deft(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a DEFT package.

    Semantics: ``W += Q (alpha / r R - S.T W)``, without ``R`` for PaRa; ``Q, S = P, relu(P)``, or both the orthonormal
    columns of ``P``'s QR decomposition. That has rank r: a ``LowRank``.
    Shape: ``<module>.deft_P`` [out_features, r], ``<module>.deft_R`` [r, in_features]; r is at most ``out_features``.
    """
    config = package.config
    assert isinstance(config, DeftConfig)
    layers = sort_layers(package, base, [_P, _R])

    def ops(layer: Layer) -> tuple[Op, ...]:
        r = min(config.r, layer.out_features)
        p = layer.tensor(_P, (layer.out_features, r))
        q, s = (p, torch.relu(p)) if config.decomposition_method == "relu" else (torch.linalg.qr(p).Q,) * 2
        inner = -(s.T @ base.weight(layer.module))
        if not config.para:
            inner = inner + layer.tensor(_R, (r, layer.in_features)) * (config.alpha / r if config.alpha else 1.0)
        elif _R in layer.found:
            raise PackageError(f"tensor {shown(key(layer.module, _R))} is unknown: with para there is {_P} alone")
        return (check_update(LowRank(inner.T.contiguous(), q.T.contiguous()), layer.module),)

    return layers.compile(ops)
