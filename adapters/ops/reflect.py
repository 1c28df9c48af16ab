"""Low-rank changes of the input: the Householder reflections of HRA, multiplied out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from adapters.ops.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class LowRankInput(LowRank):
    """A low-rank change of a module's input.

    Semantics: ``x += (x @ a) @ b``.
    Shape: ``a`` [in_features, r]; ``b`` [r, in_features].
    """

    SIDE: ClassVar[Literal["input", "output"]] = "input"
