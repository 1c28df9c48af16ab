"""The memory of training by part. Weights and states are counted; what a step needs is followed on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bases.model import output_head
from trainer.config.schema import TrainConfig, TrainingConfig
from trainer.data.encoding import IGNORED
from trainer.loop.loss import LabelledHead, token_losses
from trainer.methods import trainable_parameters
from trainer.plan.meta import Blueprint, MemoryTracker, choose_all, fused_attention, plan_method
from trainer.plan.sizes import largest_linear, state_bytes, tensor_bytes

_BODY, _HEAD, _BACKWARD = "activations", "logits", "backward"


@dataclass(frozen=True)
class BatchShape:
    """The sizes of one batch: ``rows`` padded to ``length`` tokens, ``labelled`` of each of which are learned."""

    rows: int
    length: int
    labelled: int


@dataclass(frozen=True)
class Memory:
    """Bytes. The parts are not all there at once: ``peak`` is the most at one time.

    ``adapter`` is what the method adds to the base's weights, ``activations`` what the forward pass keeps for the
    backward pass, ``logits`` the head's output and its loss with their gradients. ``working`` is the rest of the peak:
    gradients of activations, copies in another dtype, a quantized weight made whole; below zero it says how much of
    the parts is never there at once.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int

    @property
    def states(self) -> int:
        """What does not depend on the batch: weights, gradients and the optimizer's state."""
        return self.weights + self.adapter + self.gradients + self.optimizer

    @property
    def working(self) -> int:
        """The rest of the peak."""
        return self.peak - self.states - self.activations - self.logits


def estimate(blueprint: Blueprint, config: TrainConfig, batch: BatchShape) -> Memory:
    """The memory of training as ``config`` says on a base of ``blueprint`` with batches like ``batch``.

    Raises ConfigError when the method does not fit the base.
    """
    training = config.training
    planned = plan_method(blueprint, config)
    parameters = list(trainable_parameters(planned.model).values())
    gradients = sum(map(_bytes, parameters))
    optimizer = state_bytes(parameters, training.optimizer)
    adapter = tensor_bytes(planned.model) - planned.base_bytes
    beside = largest_linear(planned.base.model, training.quantize)
    model, base = planned.model, planned.base.model
    if planned.base.dtype != blueprint.dtype:  # mixed precision: matrices are copied into the dtype that computes
        other = plan_method(blueprint, config, blueprint.dtype)
        model, base = other.model, other.base.model
        beside = (
            sum(_bytes(value) for value in trainable_parameters(model).values() if value.dim() > 1) + gradients // 2
        )
    losses = _writing(model, batch) if blueprint.reading is None else partial(blueprint.reading.losses, model)
    step = _Step(model, base, training, losses)
    between = planned.weights + adapter + optimizer
    return Memory(
        weights=planned.weights,
        adapter=adapter,
        gradients=gradients,
        optimizer=optimizer,
        activations=step.activations,
        logits=step.logits,
        peak=between + max(step.peak + beside, gradients + max(map(_bytes, parameters), default=0)),
    )


class _Step:
    """Forward and backward of one optimizer step, gone through on the meta device by the trainer's own loss.

    ``activations``, ``logits`` and ``peak`` in bytes, beside what was there before the step.
    """

    def __init__(self, model: Any, base: Any, training: TrainingConfig, losses: Callable[[], Tensor]) -> None:
        model.train()
        if training.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self._tracker = MemoryTracker([*model.parameters(), *model.buffers()], _BODY)
        self.activations = self.logits = 0
        module = output_head(base)
        watch = module.register_forward_pre_hook(lambda *_: self._enter_head())
        try:
            for _ in range(min(training.gradient_accumulation, 2)):  # the second finds the first one's gradients
                self._forward_backward(losses)
        finally:
            watch.remove()
        self.peak = self._tracker.peak

    def _enter_head(self) -> None:
        self._tracker.phase = _HEAD
        self.activations = max(self.activations, self._tracker.live[_BODY])

    def _forward_backward(self, losses: Callable[[], Tensor]) -> None:
        self._tracker.phase = _BODY
        with self._tracker, choose_all, fused_attention():
            loss = losses().sum()
            self._tracker.phase = _BACKWARD
            torch.autograd.backward([loss])
        self.logits = max(self.logits, self._tracker.most[_HEAD])


def _writing(model: Any, batch: BatchShape) -> Callable[[], Tensor]:
    """The losses of a model that learns to write ``batch``."""
    head = LabelledHead(model)
    inputs, labels = (_seq2seq_inputs if model.config.is_encoder_decoder else _inputs)(batch)
    return lambda: token_losses(head.logits(model, inputs, labels), labels)


def _inputs(batch: BatchShape) -> tuple[dict[str, Tensor], Tensor]:
    """What the collator would give for ``batch``; the labels are real, because their number is a size."""
    ids = torch.zeros(batch.rows, batch.length, dtype=torch.long, device="meta")
    labels = torch.full((batch.rows, batch.length), IGNORED)
    labels[:, batch.length - min(batch.labelled, batch.length - 1) :] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def _seq2seq_inputs(batch: BatchShape) -> tuple[dict[str, Tensor], Tensor]:
    """The same for an encoder-decoder, whose decoder has what is learned behind a start token."""
    written = min(batch.labelled, batch.length - 1)
    read = torch.zeros(batch.rows, batch.length - written, dtype=torch.long, device="meta")
    labels = torch.zeros(batch.rows, written + 1, dtype=torch.long)
    labels[:, 0] = IGNORED
    decoder = torch.zeros(batch.rows, written + 1, dtype=torch.long, device="meta")
    return {"input_ids": read, "attention_mask": torch.ones_like(read), "decoder_input_ids": decoder}, labels


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
