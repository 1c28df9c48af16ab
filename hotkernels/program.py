"""Ops written down once and called in one go, as often as wanted: a call from Python costs more than many an op."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import torch

from hotkernels import native

_RUN = native.Function("run_program", "pip")


@dataclass(frozen=True)
class Variable:
    """A whole number or an address that is only known when a program runs: its number there, below 2**16.

    ``offset`` is added to it.
    """

    number: int
    offset: int = 0


@dataclass(frozen=True)
class Rows:
    """``count`` rows of floats, ``stride`` floats between the beginnings of two."""

    at: Variable
    count: Variable
    stride: int


Argument = float | Variable | None


class Program:
    """Calls of ops in order. Whatever their arguments point to must outlive it."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._placed = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Where the next call begins."""
        return len(self._words)

    def add(self, function: native.Function, *arguments: Argument) -> None:
        """Write down a call, whose arguments are as ``function`` takes them, and variables."""
        address, kinds = function.op()
        assert len(arguments) == len(kinds), f"an op of {len(kinds)} arguments"
        is_variable = sum(isinstance(argument, Variable) << i for i, argument in enumerate(arguments))
        words = [_word(argument, kind) for argument, kind in zip(arguments, kinds, strict=True)]
        self._words += [address, is_variable, *words]

    def run(self, start: int, stop: int, variables: ctypes.Array[ctypes.c_int64]) -> None:
        """Make the calls from ``start`` to ``stop``, both where a call begins."""
        if len(self._placed) != len(self._words):
            self._placed = torch.tensor(self._words)
        _RUN(self._placed.data_ptr() + 8 * start, stop - start, ctypes.addressof(variables))


def _word(argument: Argument, kind: str) -> int:
    if isinstance(argument, Variable):
        assert kind != "f"
        return argument.number | argument.offset << 16
    if kind == "f":
        number: int = struct.unpack("<i", struct.pack("<f", argument))[0]
        return number
    return int(argument or 0)
