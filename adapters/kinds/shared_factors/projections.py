"""Random factors that a package leaves out: drawn again from its seed, number for number as peft draws them.

peft draws on the CPU, whose generator is the same everywhere; a package that was made with another generator or
another version of these rules computes something else, which is why peft advises to save what it drew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.init import kaiming_uniform_

_SPARSITY = 3.0


def largest(shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The largest sides of linear maps, (out_features, in_features), which need not be those of one map."""
    outs, ins = zip(*shapes, strict=True)
    return max(outs), max(ins)


def uniform_pair(a_shape: tuple[int, int], b_shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """The factors of VeRA and PVeRA."""
    generator = torch.Generator("cpu").manual_seed(seed)
    a = kaiming_uniform_(torch.empty(a_shape, dtype=torch.float32), generator=generator)
    return a, kaiming_uniform_(torch.empty(b_shape, dtype=torch.float32), generator=generator)


def num_bases(side: int, r: int) -> int:
    """How many bases of rank ``r`` RandLoRA sums for full rank."""
    return -(-side // r)


def uniform_bases(side: int, other: int, r: int, seed: int) -> tuple[Tensor, Tensor]:
    """The bases of RandLoRA, drawn in bfloat16. Shape: [r, 1, side]; [other, num_bases, r], with side <= other."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return kaiming_uniform_(torch.empty(shape, dtype=torch.bfloat16), a=math.sqrt(5), generator=generator)

    a = draw(r, 1, side)
    b = torch.cat([draw(other, 1, r) for _ in range(num_bases(side, r))], dim=1)
    return a / a.std(), b / b.std()


def sparse_bases(side: int, other: int, r: int, seed: int, *, very: bool) -> tuple[Tensor, Tensor]:
    """The sparse bases of RandLoRA, of -1, 0 and 1 before they are scaled. Shapes as of ``uniform_bases``."""
    generator = torch.Generator("cpu").manual_seed(seed)
    tail = 1 / (2 * (math.sqrt(side) if very else _SPARSITY))

    def draw(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float32)
        return (drawn > 1 - tail).float() - (drawn < tail).float()

    a, b = draw(r, 1, side), draw(other, num_bases(side, r), r)
    return a / a.std(), b / b.std()


def normal_matrices(count: int, r: int, seed: int) -> Tensor:
    """The projections of TinyLoRA. Shape: [count, r, r]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.normal(mean=0.0, std=1.0 / (r**0.5), size=(count, r, r), generator=generator, dtype=torch.float32)


def balanced_indices(count: int, length: int, seed: int) -> Tensor:
    """The indices of Uni-LoRA: ``count`` numbers below ``length``, each as often as any other, in random order."""
    generator = np.random.default_rng(seed)
    drawn = np.repeat(np.arange(length), count // length)
    if rest := count % length:
        drawn = np.concatenate([drawn, generator.choice(length, size=rest, replace=False)])
    generator.shuffle(drawn)
    return torch.as_tensor(drawn, dtype=torch.long)
