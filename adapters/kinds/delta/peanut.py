"""PEANuT: an update that a small network computes from the base's weight (https://arxiv.org/abs/2410.01870)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.kinds.delta.config import ACTIVATIONS, PeanutConfig
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.ops import Adapter, LowRank, Op

_A, _B = "peanut_A.weight", "peanut_B.weight"
_tanh_gelu = partial(F.gelu, approximate="tanh")
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda x: x,
}
assert tuple(FUNCTIONS) == ACTIVATIONS, "every activation that is read must be computed"


def compile_peanut(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a PEANuT package.

    Semantics: ``W.T += scaling * net(W.T) @ B.T``, where ``net`` is ``act(. @ A.T)``, then ``depth`` encoders and
    ``depth`` decoders, each followed by ``act``, every decoder's output added to what its encoder was given.
    ``net(W.T)`` is [in_features, r] and computed once: a ``LowRank``.
    Shape: ``<module>.peanut_A.weight`` [r, out_features], ``peanut_B.weight`` [out_features, r],
    ``peanut_encoders.<i>.weight`` and ``peanut_decoders.<i>.weight`` [r, r].
    """
    config = package.config
    assert isinstance(config, PeanutConfig)
    encoders = [f"peanut_encoders.{i}.weight" for i in range(config.depth)]
    decoders = [f"peanut_decoders.{i}.weight" for i in range(config.depth)]
    layers = sort_layers(package, base, [_A, _B, *encoders, *decoders])
    act, r = FUNCTIONS[config.act_fn], config.r

    def ops(layer: Layer) -> tuple[Op, ...]:
        a, b = layer.tensor(_A, (r, layer.out_features)), layer.tensor(_B, (layer.out_features, r))
        hidden, skipped = act(base.weight(layer.module).T @ a.T), []
        for encoder in encoders:
            skipped.append(hidden)
            hidden = act(hidden @ layer.tensor(encoder, (r, r)).T)
        for decoder in decoders:
            hidden = act(hidden @ layer.tensor(decoder, (r, r)).T) + skipped.pop()
        return (check_update(LowRank(hidden.contiguous(), (b * config.scaling).T.contiguous()), layer.module),)

    return layers.compile(ops)
