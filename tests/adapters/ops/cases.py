"""Ops for the tests that run over all of them: each name gives the ops of one adapter at one module.

A new op adds its cases here, and is then tested over dtype × popularity × batch in ``tests/adapters/batch``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from adapters.ops import Bias, LowRank, Op
from adapters.ops.bottleneck import Bottleneck
from adapters.ops.dora import Magnitude
from adapters.ops.embed_rows import HeadRows
from adapters.ops.replace import ReplaceLinear, ReplaceParameters

IN, OUT = 24, 40
Make = Callable[[torch.dtype], tuple[Op, ...]]


def low_rank(rank: int) -> Make:
    return lambda dtype: (LowRank(torch.randn(IN, rank, dtype=dtype) * 0.2, torch.randn(rank, OUT, dtype=dtype) * 0.2),)


def bias(dtype: torch.dtype) -> tuple[Op, ...]:
    return (Bias(torch.randn(OUT, dtype=dtype)),)


def magnitude(dtype: torch.dtype) -> tuple[Op, ...]:
    return (Magnitude(torch.randn(OUT, dtype=dtype) * 0.2, torch.randn(OUT, dtype=dtype)),)


def replace_linear(dtype: torch.dtype) -> tuple[Op, ...]:
    return (ReplaceLinear(torch.randn(OUT, IN, dtype=dtype) * 0.2, torch.randn(OUT, dtype=dtype)),)


def replace_parameters(dtype: torch.dtype) -> tuple[Op, ...]:
    return (ReplaceParameters({"weight": torch.randn(OUT, IN, dtype=dtype) * 0.2}),)


def bottleneck(activation: str) -> Make:
    return lambda dtype: (
        Bottleneck(
            torch.randn(OUT, 6, dtype=dtype) * 0.2,
            torch.randn(6, dtype=dtype) * 0.2,
            torch.randn(6, OUT, dtype=dtype) * 0.2,
            torch.randn(OUT, dtype=dtype) * 0.2,
            activation,
        ),
    )


def head_rows(*ids: int) -> Make:
    return lambda dtype: (HeadRows(torch.tensor(ids), torch.randn(len(ids), IN, dtype=dtype) * 0.2),)


CASES: dict[str, Make] = {
    "low-rank-1": low_rank(1),
    "low-rank-8": low_rank(8),
    "low-rank-13": low_rank(13),
    "bias": bias,
    "magnitude": magnitude,
    "dora": lambda dtype: (*low_rank(4)(dtype), Magnitude(torch.randn(OUT, dtype=dtype) * 0.2), *bias(dtype)),
    "head rows": head_rows(0, 3, 17, OUT - 1),
    "replace linear": replace_linear,
    "replace parameters": replace_parameters,
    "bottleneck": bottleneck("relu"),
    "bottleneck-gelu": bottleneck("gelu"),
    "low-rank and bias": lambda dtype: (*low_rank(4)(dtype), *bias(dtype)),
}
