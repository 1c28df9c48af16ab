"""Ops for the tests that run over all of them: each name gives the ops of one adapter at one module.

A new op adds its cases here, and is then tested over dtype × popularity × batch in ``tests/adapters/batch``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from adapters.ops import Bias, LowRank, Op
from adapters.ops.activations import Bottleneck, Magnitude, ScaleInput
from adapters.ops.embedding import HeadRows
from adapters.ops.low_rank import LowRankInput, RandomBases, SharedLowRank
from adapters.ops.matrices import Circulant, Delta, Sparse, Spectrum
from adapters.ops.products import BlockLowRank, BlockSum, Hadamard, Kron
from adapters.ops.replace import ReplaceLinear, ReplaceParameters
from adapters.ops.rotation import RotateInput, RotateOutput, RotatePairs

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


def scale_input(dtype: torch.dtype) -> tuple[Op, ...]:
    return (ScaleInput(torch.randn(IN, dtype=dtype) * 0.2),)


def rotate_input(blocks: int, size: int, fold: int = 1) -> Make:
    return lambda dtype: (RotateInput(torch.randn(blocks, size, size, dtype=dtype) * 0.2, fold),)


def rotate_pairs(dtype: torch.dtype) -> tuple[Op, ...]:
    return (RotatePairs(torch.randn(OUT, dtype=dtype) * 0.2, torch.randn(OUT, dtype=dtype) * 0.2, 8),)


def low_rank_input(dtype: torch.dtype) -> tuple[Op, ...]:
    return (LowRankInput(torch.randn(IN, 4, dtype=dtype) * 0.2, torch.randn(4, IN, dtype=dtype) * 0.2),)


def block_sum(r: int, repeats: int) -> Make:
    return lambda dtype: (BlockSum(torch.randn(r, OUT // repeats, dtype=dtype) * 0.2, repeats),)


def delta(dtype: torch.dtype) -> tuple[Op, ...]:
    return (Delta(torch.randn(IN, OUT, dtype=dtype) * 0.2),)


def sparse(op: type[Sparse], count: int, std: float) -> Make:
    def make(dtype: torch.dtype) -> tuple[Op, ...]:
        rows, columns = torch.randint(OUT // 2, (count,)), torch.randint(IN, (count,))  # some features have none
        return (op.build(rows, columns, torch.randn(count, dtype=dtype) * std, OUT),)

    return make


def circulant(dtype: torch.dtype) -> tuple[Op, ...]:
    return (Circulant.build(torch.randn(OUT // 8, IN // 8, 8) * 0.2),)


def head_rows(*ids: int) -> Make:
    return lambda dtype: (HeadRows(torch.tensor(ids), torch.randn(len(ids), IN, dtype=dtype) * 0.2),)


def shared_low_rank(dtype: torch.dtype) -> tuple[Op, ...]:
    a, b = torch.randn(IN + 5, 6, dtype=dtype) * 0.2, torch.randn(6, OUT + 3, dtype=dtype) * 0.2
    return (SharedLowRank(a, b, torch.randn(6, dtype=dtype), torch.randn(OUT, dtype=dtype)),)


def random_bases(dtype: torch.dtype) -> tuple[Op, ...]:
    a, big = torch.randn(7, IN + 2, dtype=dtype) * 0.2, torch.randn(35, OUT + 2, dtype=dtype) * 0.2
    return (RandomBases(a, big, torch.randn(7, 4, dtype=dtype), torch.randn(4, IN, dtype=dtype) * 0.3, OUT),)


def kron(rank: int | None) -> Make:
    def make(dtype: torch.dtype) -> tuple[Op, ...]:
        w1, down = torch.randn(8, 4, dtype=dtype) * 0.2, torch.randn(6, rank or 5, dtype=dtype) * 0.3
        return (Kron(w1, down, None if rank is None else torch.randn(rank, 5, dtype=dtype) * 0.3),)

    return make


def block_low_rank(k: int, r: int) -> Make:
    return lambda dtype: (
        BlockLowRank(torch.randn(k, IN // k, r, dtype=dtype) * 0.2, torch.randn(k, r, OUT // k, dtype=dtype) * 0.2),
    )


def hadamard(dtype: torch.dtype) -> tuple[Op, ...]:
    a1, a2 = torch.randn(2, 9, OUT, dtype=dtype) * 0.2
    b1, b2 = torch.randn(2, 9, IN, dtype=dtype) * 0.2
    return (Hadamard(a1, b1, a2, b2),)


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
    "scale input": scale_input,
    "rotate-4": rotate_input(6, 4),
    "rotate-odd": rotate_input(8, 3),
    "rotate-shared": rotate_input(1, 8),
    "butterfly": lambda dtype: tuple(op for i in range(3) for op in rotate_input(4, 6, 2**i)(dtype)),
    "rotate output": lambda dtype: (RotateOutput(torch.randn(5, 8, 8, dtype=dtype) * 0.2),),
    "rotate pairs": rotate_pairs,
    "low-rank input": low_rank_input,
    "block sum": block_sum(6, 1),
    "block sum, padded and tiled": block_sum(7, 4),
    "scaled, low-rank and rotated": lambda d: (*scale_input(d), *low_rank(4)(d), *rotate_pairs(d), *bias(d)),
    "delta": delta,
    "sparse": sparse(Sparse, 90, 0.5),
    "spectrum": sparse(Spectrum, 50, 40.0),
    "circulant": circulant,
    "shared low-rank": shared_low_rank,
    "random bases": random_bases,
    "kron": kron(None),
    "kron, factored": kron(2),
    "block low-rank": block_low_rank(4, 8),
    "block low-rank of one": block_low_rank(1, 3),
    "hadamard": hadamard,
    "low-rank and bias": lambda dtype: (*low_rank(4)(dtype), *bias(dtype)),
}
