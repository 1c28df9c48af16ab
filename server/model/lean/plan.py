"""What a decoder computes, as facts: which modules, in which order, with which numbers between them.

Modules are named as adapters name them. ``server.model.lean.reading`` finds the facts; ``decoder`` computes by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from hotkernels.activation import Activation
from hotkernels.attention import AttentionRule


@dataclass(frozen=True, eq=False)
class Place:
    """A module of the base, where adapters may act."""

    name: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class NormPlan:
    """A norm over the last ``weight.shape[-1]`` numbers. ``weight`` holds what is multiplied by, an offset included.

    Shape: ``weight`` [n], or [heads, n] where every head has its own; ``bias`` as ``weight``.
    """

    place: Place
    kind: Literal["rms", "layer"]
    weight: Tensor
    bias: Tensor | None
    eps: float


MOST_TABLES = 8  # of angles, in one plan


@dataclass(frozen=True)
class TablePlan:
    """Where a layer's angles come from: ``module(x, positions, *extra)`` gives cosines and sines [1, T, R].

    ``halves`` says how the R / 2 angles stand in these: twice one after the other, each twice side by side, or once.
    ``is_fixed`` says that a position's angles are the same whatever positions are beside it.
    """

    module: nn.Module
    extra: tuple[Any, ...]
    halves: Literal["twice", "paired", "once"]
    is_fixed: bool


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """``inputs`` are q, k and v, or one map that gives the three side by side. ``table`` counts in the plan's tables.

    ``q_norm`` and ``k_norm`` stand before the rotation, or behind it with ``norm_is_last``.
    """

    inputs: tuple[Place, ...]
    output: Place
    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_norm: NormPlan | None
    k_norm: NormPlan | None
    norm_is_last: bool
    table: int | None
    interleaved: bool
    rule: AttentionRule


@dataclass(frozen=True, eq=False)
class MlpPlan:
    """``inputs`` are gate and up, or one map that gives the two side by side, or a single one that is not gated."""

    inputs: tuple[Place, ...]
    output: Place
    is_gated: bool
    activation: Activation


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """One layer, x -> y.

    Semantics: ``a = post_attention(attention(pre_attention(x)))``, ``b = post_mlp(mlp(pre_mlp(s)))``,
    ``y = x + scale a + scale b``, where ``s = x + scale a``, or ``s = x`` with ``is_parallel``. A norm that is None
    changes nothing; ``shares_norm`` says that the MLP's input is the attention's. An ``mlp`` that is a Place is
    computed by its own module.
    """

    attention: AttentionPlan
    mlp: MlpPlan | Place
    pre_attention: NormPlan | None
    post_attention: NormPlan | None
    pre_mlp: NormPlan | None
    post_mlp: NormPlan | None
    is_parallel: bool
    shares_norm: bool
    scale: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A decoder. Logits are ``logit_scale * head(norm(y))``, or with a ``softcap`` ``softcap * tanh(.. / softcap)``."""

    embedding: Place
    embedding_scale: float
    tables: tuple[TablePlan, ...]
    layers: tuple[LayerPlan, ...]
    norm: NormPlan | None
    head: Place
    logit_scale: float
    softcap: float
