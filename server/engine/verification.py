"""Verifies an adapter between steps, before any request may use it.

It answers a few prompts alone, then beside the base and other adapters. It is refused when its logits are not finite,
are not those that its trainer recorded, change with what else is in the batch, or are exactly the base's. Of an adapter
with a head of its own the hidden states that go into it are looked at in the place of logits. Each forward pass is one
of its own, whatever requests run, and is held up half-way where they must not wait for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from adapters.errors import AdapterError
from adapters.ops import Adapter
from adapters.ops.adapter import Head
from adapters.ops.embedding import EmbedRows
from adapters.package.golden import GoldenLogits
from server.adapter_key import AdapterKey
from server.engine.executor import Runner
from server.engine.request import activation_start
from server.engine.scheduler import Scheduler
from server.engine.slices import Slices
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.prepared import VerificationPlan, distance

_LENGTH = 16  # of the prompt for packages without recorded logits
_POSITIONS = 8  # whose logits are looked at, the last of a prompt: the head is much of a small model's work
_OWN = 4  # tokens of the adapter's own, after the prompt that shows its effect
_LONGEST = 512  # tokens of one pass, unless a step takes more

Pass = Callable[[], None]
Row = tuple[AdapterKey, Adapter] | None


class AdapterVerification:
    """The verification of one adapter, installed on the runner but not yet in use.

    ``others`` are run beside it; they must stay installed while a pass is under way, see ``finish_pass``.

    ``warnings`` are for whoever uploaded it.
    """

    def __init__(
        self,
        row: tuple[AdapterKey, Adapter],
        plan: VerificationPlan,
        runner: Runner,
        scheduler: Scheduler,
        *,
        others: Callable[[], Sequence[tuple[AdapterKey, Adapter]]],
        allow_noop: bool = False,
    ) -> None:
        self.warnings: list[str] = []
        self._row, self._plan, self._others, self._allow_noop = row, plan, others, allow_noop
        self._runner, self._scheduler = runner, scheduler
        self._alone = torch.empty(0)
        self._worst = 0.0
        self._head = row[1].head
        self._width = runner.hidden_size if self._head is not None else row[1].num_logits or runner.vocab_size
        self._passes = [Slices(run) for run in (self._golden_passes() if plan.golden else self._plain_passes())]

    def advance(self, until: float) -> bool:
        """Run one pass, or as much of it as can be done ``until`` then; True when the last one has ended.

        Raises AdapterError when the adapter fails.
        """
        if not self._passes[0].advance(until):
            return False
        del self._passes[0]
        if not self._passes and self._worst:
            self.warnings.append(
                "the base is quantized otherwise than at the adapter's training, and answers otherwise: the recorded "
                f"logits differ by {self._worst:.3g} of their spread. Train on the base as it is served"
            )
        return not self._passes

    def finish_pass(self) -> None:
        """End the pass that is under way, if any; how it went is for ``advance`` to say."""
        if self._passes and self._passes[0].begun:
            self._passes[0].finish()

    def close(self) -> None:
        """Give up what is left to do."""
        for run in self._passes:
            run.close()

    @property
    def _known(self) -> int:
        """Token ids that the adapter reads."""
        return self._row[1].vocab_size or self._runner.vocab_size

    # ---- passes ----

    def _golden_passes(self) -> list[Pass]:
        """Every recorded prompt alone; the shortest also by the base, and beside others."""
        known = self._known
        if any(int(golden.input_ids.max()) >= known for golden in self._plan.golden):
            raise AdapterError(
                f"a recorded prompt holds ids beyond the {known} tokens that the adapter reads on this base"
            )
        first, *rest = sorted(self._plan.golden, key=lambda golden: len(golden.input_ids))
        prompt: list[int] = first.input_ids.tolist()
        passes: list[Pass] = [lambda: self._answer(prompt, first), lambda: self._beside_others(prompt)]
        if own := _own_tokens(self._row[1]):
            passes += self._effect_passes([*prompt, *own])
        else:
            passes.append(lambda: self._effect(prompt))
        for golden in rest:
            passes.append(lambda golden=golden: self._answer(golden.input_ids.tolist(), golden))  # type: ignore[misc]
        return passes

    def _plain_passes(self) -> list[Pass]:
        generator = torch.Generator().manual_seed(0)
        known = min(self._known, self._runner.vocab_size)  # a vocabulary may have been cut to the tokenizer's
        prompt: list[int] = torch.randint(known, (_LENGTH,), generator=generator).tolist()
        return self._effect_passes([*prompt, *_own_tokens(self._row[1])])

    def _effect_passes(self, prompt: list[int]) -> list[Pass]:
        return [lambda: self._answer(prompt, None), lambda: self._effect(prompt)]

    def _answer(self, prompt: list[int], golden: GoldenLogits | None) -> None:
        self._alone = self._run([self._row], prompt)[:, : self._width]
        if not bool(torch.isfinite(self._alone).all()):
            raise AdapterError(
                "the adapter's logits are not finite on a short prompt: its training diverged, or its values are too "
                "large for the type that the server computes in"
            )
        if golden is None or not len(self._alone):
            return
        if self._head is None:
            width = min(self._width, len(golden.logits))
            measured = distance(self._alone[-1:, :width], golden.logits[None, :width])
        else:
            measured = _distance_of_outputs(self._head, self._alone[-1], golden.logits)
        if not measured <= self._plan.golden_tolerance:
            raise AdapterError(
                "the adapter does not answer as it did after its training: its logits on a recorded prompt differ by "
                f"{measured:.3g} of their spread, allowed is {self._plan.golden_tolerance:.3g}. The base, its "
                "quantization or the package are not those of the training: train it on the base as it is served"
            )
        if measured > self._plan.golden_warning:
            self._worst = max(self._worst, measured)

    def _beside_others(self, prompt: list[int]) -> None:
        if not len(self._alone):
            return
        rows: list[Row] = [None, *self._others(), self._row]
        together = self._run(rows, prompt)[-len(self._alone) :, : self._width]
        measured = distance(together, self._alone) if len(together) else 0.0
        if not measured <= self._plan.batch_tolerance:
            raise AdapterError(
                f"the adapter's logits change by {measured:.3g} of their spread when others are in the batch, allowed "
                f"is {self._plan.batch_tolerance:.3g}; its values are too large for the type the server computes in"
            )

    def _effect(self, prompt: list[int]) -> None:
        """The base answers in the same places of the batch, so that an adapter without effect is equal bit by bit."""
        adapter = self._row[1]
        if adapter.num_virtual_tokens or adapter.vocab_size or adapter.num_logits or not len(self._alone):
            return
        if adapter.head is not None:
            return  # that is an effect by itself
        if not torch.equal(self._run([None], prompt), self._alone):
            return
        problem = "the adapter answers exactly as the base does (was it trained?)"
        if not self._allow_noop:
            raise AdapterError(f"{problem}; send allow_noop=true to serve it all the same")
        self.warnings.append(problem)

    # ---- running ----

    def _run(self, rows: Sequence[Row], prompt: list[int]) -> Tensor:
        """Logits at the last positions of ``prompt`` for each row in turn, none when that does not fit into the cache.

        Hidden states in the place of logits where the adapter that is verified has a head of its own.

        An encoder-decoder reads the prompt and is made to repeat it: the logits are those of the decoder.

        Shape: [len(rows) * positions, vocab_size].
        """
        blocks = self._scheduler.blocks
        virtual = [0 if row is None else row[1].num_virtual_tokens for row in rows]
        length = len(prompt) * (2 if self._runner.start_ids else 1)
        counts = [blocks.blocks_for(n + length) for n in virtual]
        if length * len(rows) > max(_LONGEST, self._scheduler.config.max_num_batched_tokens):
            self.warnings.append("the adapter was not verified on every prompt: they are longer than one step")
            return torch.empty(0, self._runner.vocab_size)
        longest = max(virtual) + length
        fits = longest <= self._runner.max_model_len
        loan = self._scheduler.lend(sum(counts), self.finish_pass) if fits else None
        if loan is None:
            self.warnings.append("the adapter was not verified on every prompt: the KV cache is too small for them")
            return torch.empty(0, self._runner.vocab_size)
        try:
            tables = [loan.blocks[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]
            sequences = [self._sequence(row, prompt, table) for row, table in zip(rows, tables, strict=True)]
            logits, hidden = self._runner.compute(ModelInput(sequences))
            return (logits if self._head is None else torch.cat(hidden)).cpu()
        finally:
            self._scheduler.take_back(loan)

    def _sequence(self, row: Row, prompt: list[int], table: list[int]) -> SequenceInput:
        key, virtual, given = None, 0, 0
        if row is not None:
            key, virtual = row[0], row[1].num_virtual_tokens
            if row[1].prefix is not None:
                self._runner.write_prefix(key, table)
                given = virtual
        start_ids = self._runner.start_ids
        ids = [*[VIRTUAL] * (virtual - given), *prompt, *([*start_ids, *prompt[:-1]] if start_ids else [])]
        wanted = list(range(len(ids) - min(len(prompt), _POSITIONS), len(ids)))
        active = activation_start(prompt, () if row is None else row[1].invocation_tokens)
        logits_at, hidden_at = (wanted, []) if self._head is None else ([], wanted)
        decoder_start = virtual + len(prompt) if start_ids else 0
        return SequenceInput(key, ids, given, table, logits_at, decoder_start, active, hidden_at)


def _distance_of_outputs(head: Head, hidden: Tensor, expected: Tensor) -> float:
    """How far what ``head`` makes of ``hidden`` is from ``expected``, by what it makes of an arbitrary state.

    Semantics: ``max_l |w_l h + b_l - e_l| / (||w_l|| rms(h))``: for one output too there is a spread to compare with.
    Shape: ``hidden`` [hidden_size], ``expected`` [num_labels]; infinite where they are of another number.
    """
    outputs = head.outputs(hidden[None])[0]
    if outputs.shape != expected.shape:
        return math.inf
    spread = head.weight.float().norm(dim=1) * hidden.square().mean().sqrt()
    return float(((outputs - expected).abs() / spread.clamp(min=1e-12)).max())


def _own_tokens(adapter: Adapter) -> list[int]:
    """Tokens without which the adapter might seem to have no effect: its invocation, or some with own embeddings."""
    if adapter.invocation_tokens:
        return list(adapter.invocation_tokens)
    rows = [op for ops in adapter.ops.values() for op in ops if isinstance(op, EmbedRows)]
    return [token for op in rows for token in op.ids[:_OWN].tolist()][:_OWN]
