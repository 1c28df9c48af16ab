"""Types of numbers that vectors are sent in, smaller than those they are computed in. numpy knows some of them only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NumberType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
ByteOrder = Literal["native", "big", "little"]
Numbers = NDArray[np.float32]


def packed_numbers(vector: bytes, kind: NumberType | None, order: ByteOrder | None) -> bytes:
    """``vector``, little-endian float32, as numbers of another type, rounded to the nearest, or in another order.

    ``native`` is little-endian, whatever the machine.
    """
    found = _PACK[kind or "float32"](np.frombuffer(vector, "<f4"))
    return found.astype(found.dtype.newbyteorder(">")).tobytes() if order == "big" else found.tobytes()


def _float16(numbers: Numbers) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # they are infinite then, as in torch
        return numbers.astype("<f2")


def _bfloat16(numbers: Numbers) -> NDArray[np.uint16]:
    """The upper halves of float32, the nearest one, of two the even one."""
    bits = numbers.view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _eight_bits(exponent_bits: int, highest: int) -> Callable[[Numbers], NDArray[np.uint8]]:
    """Numbers of a sign, such an exponent, and what is left of seven bits. What is too large becomes ``highest``."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(highest + 1)
    exponents, mantissas = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    scale = np.exp2(np.maximum(exponents, 1) - (1 << (exponent_bits - 1)) + 1 - mantissa_bits)
    values = (mantissas + (exponents > 0) * (1 << mantissa_bits)) * scale
    middles = (values[1:] + values[:-1]) / 2

    def pack(numbers: Numbers) -> NDArray[np.uint8]:
        sizes = np.abs(numbers.astype(np.float64))
        below = np.searchsorted(middles, sizes, side="left")
        is_tie = (below < highest) & (middles[np.minimum(below, highest - 1)] == sizes)
        nearest = below + (is_tie & (below % 2 == 1))
        signed: NDArray[np.uint8] = (nearest | (np.signbit(numbers) * 0x80)).astype(np.uint8)
        return signed

    return pack


_PACK: dict[str, Callable[[Numbers], NDArray[np.generic]]] = {
    "float32": lambda numbers: numbers,
    "float16": _float16,
    "bfloat16": _bfloat16,
    "fp8_e4m3": _eight_bits(4, 0x7E),  # 448: there is no infinity
    "fp8_e5m2": _eight_bits(5, 0x7C),  # which is infinity
}
