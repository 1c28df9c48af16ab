"""Computes a step by a plan: few calls a layer, whatever is in the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adapters.batch.low_rank import Places
from adapters.checkpoints import checkpoint, may_be_held_up
from hotkernels.program import Program
from server.model.layout import Assembled
from server.model.lean.angles import Table
from server.model.lean.parts import HeadNorm, Norm, Projection
from server.model.lean.plan import AttentionPlan, LayerPlan, MlpPlan, NormPlan, Place, Plan
from server.model.lean.stages import (
    ActivationStage,
    AdditionStage,
    AttentionStage,
    HeadNormStage,
    NormStage,
    ProjectionStage,
    Register,
    Registers,
    RotationStage,
    Stage,
    WholeStage,
)
from server.model.step import Step


class _Written(NamedTuple):
    """A stage and its calls in the program; none where only Python can compute it."""

    stage: Stage
    start: int
    stop: int


class _Layers:
    """All stages, and their calls in a program, with low-rank updates and row ops by the numbers of ``places``."""

    def __init__(self, stages: Sequence[Stage], places: Places | None) -> None:
        self.places = places
        self._program = Program()
        self._stages: list[_Written] = []
        for stage in stages:
            start = len(self._program)
            stage.write(self._program, places)
            self._stages.append(_Written(stage, start, len(self._program)))
        self._unwritten = [written for written in self._stages if written.start == written.stop]

    def compute(self, registers: Registers, step: Step) -> None:
        """All stages in order: calls of the program, and where it has none or an adapter acts, the stages' own."""
        done = 0
        for stage, start, stop in self._stages if step.groups else self._unwritten:
            if start < stop and not stage.is_adapted(step):
                continue
            self._call(done, start, registers)
            stage.run(registers, step)
            done = stop
        self._call(done, len(self._program), registers)

    def _call(self, start: int, stop: int, registers: Registers) -> None:
        """Make the calls from ``start`` to ``stop``; stage by stage in a thread that may be held up between two."""
        ends = [written.stop for written in self._stages if start < written.stop < stop] if may_be_held_up() else []
        for end in (*ends, stop):
            if start < end:
                checkpoint()
                self._program.run(start, end, registers.variables)
                start = end


class LeanDecoder:
    """A plan, ready to run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tables = [Table(table) for table in plan.tables]
        self._embed: Any = plan.embedding.module
        self._norm = None if plan.norm is None else Norm(plan.norm)
        self._head = Projection([plan.head])
        self._size = self._head.in_features
        self._widths: dict[Register, int] = {}
        self._need(Register.NORMED, self._size)
        self._stages = [stage for index, layer in enumerate(plan.layers) for stage in self._layer(index, layer)]
        self._layers = _Layers(self._stages, None)

    @property
    def has_exact_rows(self) -> bool:
        """Whether with native kernels nothing depends on other rows: what runs as the model's own modules might."""
        own_parts = all(isinstance(layer.mlp, MlpPlan) for layer in self._plan.layers)
        return own_parts and all(table.is_fixed for table in self._plan.tables)

    def logits(self, batch: Assembled) -> Tensor:
        """The logits of the rows that are wanted, [n, vocab_size]. Only inside of ``computing(batch.step)``.

        Leaves hidden states in the step where it wants them.
        """
        step, stream = batch.step, self._embed(batch.input_ids)
        if self._plan.embedding_scale != 1.0:
            stream *= self._plan.embedding_scale
        angles = [table.rows(stream, batch.positions, step.num_positions) for table in self._tables]
        registers = Registers(stream, self._widths, angles, step)
        layers = self._layers
        if step.places is not None and step.places is not layers.places:  # once, with the first such step
            layers = self._layers = _Layers(self._stages, step.places)
        layers.compute(registers, step)
        logits = self._logits(registers, batch)
        if step.wants_hidden:
            step.hidden = self._hidden(registers, step)
        return logits

    def _hidden(self, registers: Registers, step: Step) -> Tensor:
        """All rows behind the last norm, [T, size]. The stream is used up."""
        x = registers.get(Register.STREAM, self._size)
        x.add_(registers.get(Register.B, self._size), alpha=self._plan.layers[-1].scale)
        return x if self._norm is None else self._norm(x, step)

    def _logits(self, registers: Registers, batch: Assembled) -> Tensor:
        rows = batch.logits_rows
        x = registers.get(Register.STREAM, self._size).index_select(0, rows)
        added = registers.get(Register.B, self._size).index_select(0, rows)
        x.add_(added, alpha=self._plan.layers[-1].scale)
        if self._norm is not None:
            x = self._norm(x, batch.step, at_head=True)
        y = self._head(x, batch.step, at_head=True)
        if self._plan.softcap:
            return y.div_(self._plan.softcap).tanh_().mul_(self._plan.softcap)
        return y if self._plan.logit_scale == 1.0 else y.mul_(self._plan.logit_scale)

    def _need(self, register: Register, width: int) -> None:
        self._widths[register] = max(self._widths.get(register, 0), width)

    def _layer(self, index: int, plan: LayerPlan) -> Iterator[Stage]:
        """Takes in what the layer before left in ``B``, and leaves there what it adds to the stream itself."""
        x, stages = self._normed(plan.pre_attention, Register.B if index else None, plan.scale)
        yield from stages
        yield from self._attention(index, plan.attention, x)
        if plan.post_attention is not None:
            yield NormStage(Norm(plan.post_attention), Register.A, Register.A)
        if not plan.is_parallel:
            x, stages = self._normed(plan.pre_mlp, Register.A, plan.scale)
            yield from stages
        elif not plan.shares_norm:
            x, stages = self._normed(plan.pre_mlp, None, plan.scale)
            yield from stages
        yield from self._mlp(plan.mlp, x)
        if plan.is_parallel:
            yield AdditionStage(Register.A, plan.scale, self._size)
        if plan.post_mlp is not None:
            yield NormStage(Norm(plan.post_mlp), Register.B, Register.B)

    def _normed(self, plan: NormPlan | None, added: Register | None, scale: float) -> tuple[Register, Sequence[Stage]]:
        """The norm of the stream after ``added`` went into it, and where that is found."""
        if plan is None:
            return Register.STREAM, [] if added is None else [AdditionStage(added, scale, self._size)]
        norm = Norm(plan)
        if added is None:
            return Register.NORMED, [NormStage(norm, Register.STREAM, Register.NORMED)]
        return Register.NORMED, [NormStage(norm, added, Register.NORMED, scale)]

    def _attention(self, index: int, plan: AttentionPlan, x: Register) -> Iterator[Stage]:
        yield self._project(plan.inputs, x, Register.HEADS)
        norms = [(plan.q_norm, 0, plan.num_heads), (plan.k_norm, plan.num_heads, plan.num_kv_heads)]
        stages: list[Stage] = [HeadNormStage(HeadNorm(n), plan, first, count) for n, first, count in norms if n]
        if plan.table is not None:
            stages.insert(0 if plan.norm_is_last else len(stages), RotationStage(plan, plan.table))
        yield from stages
        self._need(Register.ATTENDED, plan.num_heads * plan.head_dim)
        yield AttentionStage(index, plan)
        yield self._project((plan.output,), Register.ATTENDED, Register.A)

    def _mlp(self, plan: MlpPlan | Place, x: Register) -> Iterator[Stage]:
        if isinstance(plan, Place):
            yield WholeStage(plan, x, self._size)
            return
        yield self._project(plan.inputs, x, Register.HIDDEN)
        output = self._project((plan.output,), Register.ACTIVATED, Register.B)
        size = output.in_features
        self._need(Register.ACTIVATED, size)
        yield ActivationStage(plan.activation, size, is_gated=plan.is_gated)
        yield output

    def _project(self, places: Sequence[Place], source: Register, target: Register) -> ProjectionStage:
        projection = Projection(places)
        self._need(target, projection.out_features)
        return ProjectionStage(projection, source, target)
