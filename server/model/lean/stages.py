"""The parts of a layer, each from some of a step's registers to others: as calls of a program, and as Python.

A program makes many calls in one, as long as no adapter acts where they compute.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from adapters.batch.low_rank import Places
from hotkernels import native
from hotkernels.activation import Activation, activated, add_activation, gated
from hotkernels.attention import CacheAt, SequencesAt, add_attention, add_cache_write
from hotkernels.program import Program, Rows, Variable
from hotkernels.rotary import AnglesAt, add_rotation, rotate
from server.model.lean.parts import HeadNorm, Norm, Projection, UpdatesAt
from server.model.lean.plan import MOST_TABLES, AttentionPlan, Place
from server.model.step import Step

Angles = tuple[Tensor, Tensor]


class Register(IntEnum):
    """What a step holds between stages, [T, width] each; the width may differ from layer to layer."""

    STREAM = 0  # the residual stream
    NORMED = 1
    HEADS = 2  # queries, then keys, then values
    ATTENDED = 3
    A = 4  # what attention adds to the stream
    HIDDEN = 5
    ACTIVATED = 6
    B = 7  # what the MLP adds


# The variables of a program: where the registers are, then
_ROWS = Variable(len(Register))
_SLOTS = Variable(_ROWS.number + 1)
_FIRST_OF_UPDATES = _SLOTS.number + 1
_FIRST_OF_SEQUENCES = _FIRST_OF_UPDATES + 6
_FIRST_OF_ANGLES = _FIRST_OF_SEQUENCES + 7
_FIRST_OF_CACHE = _FIRST_OF_ANGLES + 3 * MOST_TABLES


def _variables(first: int, count: int) -> Iterator[Variable]:
    return map(Variable, range(first, first + count))


def _updates_at(places: Places) -> UpdatesAt:
    a, b, c, d, e, f = _variables(_FIRST_OF_UPDATES, 6)
    return UpdatesAt(places, low_rank=(a, b), before=(c, d), after=(e, f))


def rows_of(register: Register, width: int, first: int = 0) -> Rows:
    """Where a program finds the rows of a register, each from its number ``first`` on."""
    return Rows(Variable(register, first * torch.float32.itemsize), _ROWS, width)


def width_of_heads(plan: AttentionPlan) -> int:
    """Of queries, keys and values together."""
    return (plan.num_heads + 2 * plan.num_kv_heads) * plan.head_dim


class Registers:
    """The registers of one step in progress, of which there may be several at once."""

    def __init__(self, stream: Tensor, widths: Mapping[Register, int], angles: Sequence[Angles], step: Step) -> None:
        self.rows, self.angles = len(stream), angles
        self._tensors = [torch.empty(self.rows * widths.get(register, 0)) for register in Register]
        self._heads: tuple[Tensor, tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] | None = None
        s = step.sequences
        assert s is not None, "a plan runs on the CPU"
        found = [tensor.data_ptr() for tensor in self._tensors]
        found += [self.rows, step.slots.data_ptr()]
        found += [0, 0] if step.low_rank is None else [step.low_rank.rows.address, step.low_rank.rows.count]
        for rows in (None, None) if step.row_ops is None else (step.row_ops.before, step.row_ops.after):
            found += [0, 0] if rows is None else [rows.address, rows.count]
        found += [
            s.row.data_ptr(),
            s.count.data_ptr(),
            s.start.data_ptr(),
            s.blocks.data_ptr(),
            *s.blocks.shape,
            s.block_size,
        ]
        for cos, sin in angles:
            found += [cos.data_ptr(), sin.data_ptr(), cos.shape[1]]
        found += [0] * (_FIRST_OF_CACHE - len(found))
        found += step.cache.numbers
        self.variables = (ctypes.c_int64 * len(found))(*found)
        self.put(Register.STREAM, stream)

    def get(self, register: Register, width: int) -> Tensor:
        """A register of ``width`` numbers a row, [T, width]."""
        return self._tensors[register][: self.rows * width].view(self.rows, width)

    def put(self, register: Register, tensor: Tensor) -> None:
        """Make ``tensor`` [T, width] the register."""
        flat = self._tensors[register] = tensor.reshape(-1)
        self.variables[register] = flat.data_ptr()

    def split_heads(self, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, Hq, D], keys and values [T, Hkv, D]; made once where layers are alike."""
        tensor, q_end = self._tensors[Register.HEADS], plan.num_heads
        shape = q_end, plan.num_kv_heads, plan.head_dim
        if self._heads is None or self._heads[0] is not tensor or self._heads[1] != shape:
            heads = self.get(Register.HEADS, width_of_heads(plan)).view(self.rows, -1, plan.head_dim)
            v_start = q_end + plan.num_kv_heads
            self._heads = tensor, shape, (heads[:, :q_end], heads[:, q_end:v_start], heads[:, v_start:])
        return self._heads[2]


class Stage(ABC):
    """One part of a layer."""

    def is_adapted(self, step: Step) -> bool:
        """Whether an adapter of the batch acts here."""
        return False

    @abstractmethod
    def run(self, registers: Registers, step: Step) -> None:
        """Compute it, adapters included."""

    def write(self, program: Program, places: Places | None) -> bool:
        """Add the calls that compute it; False when there are none, and only ``run`` can.

        Adapters are left out, but for low-rank updates and row ops by the numbers of ``places``.
        """
        return False


class NormStage(Stage):
    """A norm of ``source``, or of the stream after ``source`` went into it, ``scale`` times."""

    def __init__(self, norm: Norm, source: Register, target: Register, scale: float | None = None) -> None:
        self._norm, self._source, self._target, self._scale = norm, source, target, scale

    @override
    def is_adapted(self, step: Step) -> bool:
        return self._norm.is_adapted(step)

    @override
    def run(self, registers: Registers, step: Step) -> None:
        width = self._norm.width
        x = registers.get(self._source, width)
        if self._scale is None:
            registers.put(self._target, self._norm(x, step))
        else:
            registers.put(self._target, self._norm(x, step, registers.get(Register.STREAM, width), self._scale))

    @override
    def write(self, program: Program, places: Places | None) -> bool:
        x = rows_of(self._source, self._norm.width)
        if self._scale is None:
            return self._norm.write(program, x, Variable(self._target), None, 1.0)
        return self._norm.write(program, x, Variable(self._target), Variable(Register.STREAM), self._scale)


class ProjectionStage(Stage):
    """Linear maps of one input."""

    def __init__(self, projection: Projection, source: Register, target: Register) -> None:
        self.in_features = projection.in_features
        self._projection, self._source, self._target = projection, source, target

    @override
    def is_adapted(self, step: Step) -> bool:
        return self._projection.is_adapted(step)

    @override
    def run(self, registers: Registers, step: Step) -> None:
        x = registers.get(self._source, self.in_features)
        registers.put(self._target, self._projection(x, step))

    @override
    def write(self, program: Program, places: Places | None) -> bool:
        updates = None if places is None else _updates_at(places)
        x = rows_of(self._source, self.in_features)
        return self._projection.write(program, x, Variable(self._target), updates)


class HeadNormStage(Stage):
    """A norm of the queries, or of the keys: ``count`` heads of each row from number ``first`` on."""

    def __init__(self, norm: HeadNorm, plan: AttentionPlan, first: int, count: int) -> None:
        self._norm, self._plan, self._first, self._count = norm, plan, first, count

    @override
    def is_adapted(self, step: Step) -> bool:
        return self._norm.is_adapted(step)

    @override
    def run(self, registers: Registers, step: Step) -> None:
        heads = registers.get(Register.HEADS, width_of_heads(self._plan))
        heads = heads.view(registers.rows, -1, self._plan.head_dim)
        self._norm(heads[:, self._first : self._first + self._count], step)

    @override
    def write(self, program: Program, places: Places | None) -> bool:
        dim = self._plan.head_dim
        heads = rows_of(Register.HEADS, width_of_heads(self._plan), self._first * dim)
        return self._norm.write(program, heads, self._count, dim)


class RotationStage(Stage):
    """The rotation of queries and keys by their positions."""

    def __init__(self, plan: AttentionPlan, table: int) -> None:
        self._plan, self._table = plan, table
        self._count = plan.num_heads + plan.num_kv_heads

    @override
    def run(self, registers: Registers, step: Step) -> None:
        plan = self._plan
        heads = registers.get(Register.HEADS, width_of_heads(plan)).view(registers.rows, -1, plan.head_dim)
        rotate(heads[:, : self._count], *registers.angles[self._table], interleaved=plan.interleaved)

    @override
    def write(self, program: Program, places: Places | None) -> bool:
        if native.library() is None:
            return False
        plan, x = self._plan, rows_of(Register.HEADS, width_of_heads(self._plan))
        angles = AnglesAt(*_variables(_FIRST_OF_ANGLES + 3 * self._table, 3))
        add_rotation(program, x, angles, heads=self._count, head_dim=plan.head_dim, interleaved=plan.interleaved)
        return True


class AttentionStage(Stage):
    """Keys and values go into the cache, and queries attend to it."""

    def __init__(self, index: int, plan: AttentionPlan) -> None:
        self._index, self._plan = index, plan
        sinks = plan.rule.sinks
        self._rule = replace(plan.rule, sinks=None if sinks is None else sinks.detach().float().contiguous())

    @override
    def run(self, registers: Registers, step: Step) -> None:
        assert step.sequences is not None, "a plan runs on the CPU"
        q, k, v = registers.split_heads(self._plan)
        step.cache.write(self._index, step.slots, k, v)
        y = step.cache.attend(self._index, q, step.sequences, self._rule)
        registers.put(Register.ATTENDED, y)

    @override
    def write(self, program: Program, places: Places | None) -> bool:
        if native.library() is None or self._rule.bias is not None:
            return False
        plan, width = self._plan, width_of_heads(self._plan)
        heads, dim = plan.num_heads, plan.head_dim
        keys, values = (rows_of(Register.HEADS, width, (heads + n) * dim) for n in (0, plan.num_kv_heads))
        cache = CacheAt(*_variables(_FIRST_OF_CACHE + 9 * self._index, 9))
        add_cache_write(program, keys, values.at, _SLOTS, cache=cache, heads=plan.num_kv_heads, dim=dim)
        sequences = SequencesAt(*_variables(_FIRST_OF_SEQUENCES, 7))
        queries, shape = rows_of(Register.HEADS, width), (heads, plan.num_kv_heads, dim)
        y = Variable(Register.ATTENDED)
        add_attention(program, queries, y, self._rule, cache=cache, sequences=sequences, heads=shape)
        return True


class ActivationStage(Stage):
    """The activation of ``size`` numbers a row, or of one half of twice as many, which gates the other."""

    def __init__(self, kind: Activation, size: int, *, is_gated: bool) -> None:
        self._kind, self._is_gated = kind, is_gated
        self._width = 2 * size if is_gated else size

    @override
    def run(self, registers: Registers, step: Step) -> None:
        x = registers.get(Register.HIDDEN, self._width)
        registers.put(Register.ACTIVATED, (gated if self._is_gated else activated)(x, self._kind))

    @override
    def write(self, program: Program, places: Places | None) -> bool:
        if native.library() is None:
            return False
        x = rows_of(Register.HIDDEN, self._width)
        add_activation(program, self._kind, x, Variable(Register.ACTIVATED), is_gated=self._is_gated)
        return True


class WholeStage(Stage):
    """An MLP that runs as the model's own module, such as routed experts."""

    def __init__(self, place: Place, source: Register, size: int) -> None:
        self._module: Any = place.module
        self._source, self._size = source, size

    @override
    def run(self, registers: Registers, step: Step) -> None:
        y = self._module(registers.get(self._source, self._size)[None])
        y = y[0] if isinstance(y, tuple) else y
        assert isinstance(y, Tensor)
        registers.put(Register.B, y)


class AdditionStage(Stage):
    """``source`` goes into the stream, ``scale`` times, where no norm does that."""

    def __init__(self, source: Register, scale: float, size: int) -> None:
        self._source, self._scale, self._size = source, scale, size

    @override
    def run(self, registers: Registers, step: Step) -> None:
        stream = registers.get(Register.STREAM, self._size)
        stream.add_(registers.get(self._source, self._size), alpha=self._scale)
