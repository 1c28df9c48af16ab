"""The losses of tasks that read, one number for every row, or for every word that has a tag.

They are summed and divided by their number in the whole accumulated batch: a ragged batch weighs as many as it has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config.task import EmbeddingTask, ReadingTask, RegressionTask
from trainer.data.encoding import IGNORED
from trainer.distributed import processes
from trainer.distributed.launch import process_count
from trainer.pooling.model import unit
from trainer.pooling.pooled_data import PooledData

RowLosses = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""Losses [rows] of the model's outputs [texts, outputs] for a batch of trainer.pooling.examples, but its blanks."""


def make_losses(task: ReadingTask, data: PooledData, smoothing: float) -> RowLosses:
    """The losses of ``task``; ``smoothing`` is the share of a class that is spread over all of them."""
    if isinstance(task, EmbeddingTask):
        return lambda out, batch: pair_losses(out, batch, task.temperature)
    if isinstance(task, RegressionTask):
        return lambda out, batch: (_wanted(out, batch)[:, 0] - batch["labels"]).square()
    weights = class_weights(data) if task.class_weights == "balanced" else None
    assert data.labels is not None, "classification has labels"
    if data.labels.of_words:
        return lambda out, batch: tag_losses(out, batch["labels"], weights, smoothing)
    if data.labels.several:
        return lambda out, batch: several_losses(_wanted(out, batch), batch["labels"], weights)
    return lambda out, batch: class_losses(_wanted(out, batch), batch["labels"], weights, smoothing)


def _wanted(out: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return out[: len(batch["labels"])]


def class_losses(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """Cross entropy [rows] of ``logits`` [rows, classes], each times the weight of its class."""
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return losses if weights is None else losses * weights.to(losses.device)[labels]


def tag_losses(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """``class_losses`` [words] of ``logits`` [rows, length, tags] where ``labels`` [rows, length] has a tag."""
    read = labels != IGNORED
    return class_losses(logits[read], labels[read], weights, smoothing)


def count_losses(batch: dict[str, Tensor]) -> int:
    """How many losses ``batch`` has."""
    labels = batch["labels"]
    return int((labels != IGNORED).sum()) if "places" in batch else len(labels)


def several_losses(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Mean binary cross entropy [rows] over the classes; ``weights`` are of the positive ones."""
    weights = None if weights is None else weights.to(logits.device)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none", pos_weight=weights).mean(-1)


def pair_losses(vectors: Tensor, batch: dict[str, Tensor], temperature: float) -> Tensor:
    """Of first texts and others [texts, width]: InfoNCE, or the squared error of the cosine where rows have a score."""
    labels = batch["labels"]
    firsts = unit(vectors[: len(labels)])
    if "keys" not in batch:
        return ((firsts * unit(vectors[len(vectors) - len(labels) :])).sum(-1) - labels).square()
    keys = batch["keys"]
    others = unit(vectors[len(vectors) - len(keys) :])
    # The same text as a row's own speaks neither for nor against it.
    hidden = (keys == keys[labels][:, None]) & (torch.arange(len(keys), device=keys.device) != labels[:, None])
    logits = (firsts @ others.T / temperature).masked_fill(hidden, float("-inf"))
    return F.cross_entropy(logits, labels, reduction="none")


def beside_others(vectors: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """``vectors`` and ``batch`` of pairs, with the texts behind the first ones of all processes.

    So every row is compared with all texts of the whole batch, whoever computed them, as in one process.
    """
    if "keys" not in batch or process_count() == 1:
        return vectors, batch
    labels, count = batch["labels"], len(batch["keys"])
    others, before = processes.gathered(vectors[len(vectors) - count :])
    keys, _ = processes.gathered(batch["keys"][:, None])
    return torch.cat([vectors[: len(labels)], others]), {**batch, "labels": labels + before, "keys": keys[:, 0]}


def class_weights(data: PooledData) -> Tensor:
    """Weights by which every class counts the same; their mean over the rows (or words) is 1. Shape: [classes]."""
    assert data.labels is not None, "classification has labels"
    counts = torch.tensor([float(data.counts[name]) for name in data.labels.names])
    seen = counts > 0
    return torch.where(seen, counts.sum() / (seen.sum() * counts.clamp(min=1)), 1.0)
