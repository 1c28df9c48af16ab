"""One run of a task that reads, from configuration to package: ``train_pooled(session, task, make_score)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers import set_seed

from trainer.base_model import Base, load_base
from trainer.config.task import EmbeddingTask, ReadingTask
from trainer.data.splits import progress_messages
from trainer.distributed import processes
from trainer.loop.session import RunResult, TrainingSession, check_context, describe
from trainer.loop.trainer import make_arguments, total_steps
from trainer.methods import apply_method
from trainer.pooling.answers import Said, Score
from trainer.pooling.baseline import baseline_answers
from trainer.pooling.examples import PooledCollator
from trainer.pooling.model import PooledModel
from trainer.pooling.package import export_pooled
from trainer.pooling.pooled_data import PooledData, load_pooled_data
from trainer.pooling.report import label_lines, write_label_report
from trainer.pooling.start import begin_pooled
from trainer.pooling.trainer import PooledTrainer

LABELS_FILE = "labels.json"  # in the output: rows, hits and F1 of each class


@dataclass(frozen=True)
class _Run:
    """What is trained on what; ``before`` are scores of the base."""

    task: ReadingTask
    data: PooledData
    base: Base
    before: dict[str, float]


def train_pooled(session: TrainingSession, task: ReadingTask, make_score: Callable[[str], Score]) -> RunResult:
    """As ``trainer.run.train``, for a configuration with a ``task`` that reads.

    ``make_score`` gives the score of what a run learns: the task's name, or similarity.
    """
    config = session.config
    base = load_base(config)
    progress = progress_messages(session.display.message)
    data = load_pooled_data(config.data, task, base.tokenizer, config.training.seed, progress)
    for note in data.notes:
        session.display.message(note)
    check_context(base.model.config, config, data.longest)
    identity = session.identify(base, data.sha256)
    score = make_score(data.learned)
    before = _of_base(base, task, data, score, config.training.batch_size)
    set_seed(config.training.seed)
    adapted = apply_method(base, config.method, total_steps(config.training, len(data.train)))
    model = PooledModel(adapted, base, getattr(task, "pooling", "last"), data.num_outputs)
    session.begin(model, base, partial(begin_pooled, data.labels, session.display.message))
    arguments = make_arguments(config, len(data.train))
    counts = {"train_rows": len(data.train), "validation_rows": len(data.validation)}
    session.display.message(describe(config, base, model, **counts))
    session.open_records(base, {"sha256": data.sha256, **counts, "dropped": data.dropped})
    session.scores = score.names
    trainer = PooledTrainer(model, arguments, data, base, config=config, task=task, identity=identity, score=score)
    processes.reseed(config.training.seed)
    seconds = session.run(trainer)
    if stopped := session.interrupted(trainer):
        return stopped
    return processes.from_main(lambda: _finish(session, _Run(task, data, base, before), trainer, seconds))


def _of_base(base: Base, task: ReadingTask, data: PooledData, score: Score, batch_size: int) -> dict[str, float]:
    """What the base's own vectors score on the rows held back, before training: the baseline of an embedding."""
    if not isinstance(task, EmbeddingTask) or not len(data.validation):
        return {}
    model = PooledModel(base.model, base, task.pooling).eval()
    collate, said = PooledCollator(base.pad_id), Said(None)
    with torch.no_grad():
        for at in range(0, len(data.validation), batch_size):
            batch = {k: v.to(model.device) for k, v in collate(data.validation[at : at + batch_size]).items()}
            said.add(model(batch["input_ids"], batch["attention_mask"]), batch)
    model.close()
    return {f"base_{name}": value for name, value in score(*said.answers()).items()}


def _finish(session: TrainingSession, run: _Run, trainer: PooledTrainer, seconds: float) -> RunResult:
    """Evaluate, export and account for the run."""
    data, results = run.data, session.summary(trainer, seconds)
    if len(data.validation):
        loss, answers = trainer.answers()
        results |= {"validation_loss": loss, **_scores(trainer.score, answers, data), **run.before}
        if data.labels:
            write_label_report(session.output / LABELS_FILE, data, answers)
            for line in label_lines(data, answers):
                session.display.message(line)
    session.append({"step": trainer.state.global_step, **results})
    made = export_pooled(trainer.trained, run.base, session.config, run.task, data, results)
    return session.result(trainer, made, results)


def _scores(score: Score, answers: tuple[list[str], list[str]], data: PooledData) -> dict[str, float]:
    """The scores of ``answers``, and of an answer that is always the same: the commonest class, the mean."""
    found = score(*answers)
    same = baseline_answers(data, answers[1])
    if same is None:
        return found
    name, said = same
    return found | {f"{name}_{key}": value for key, value in score(said, answers[1]).items()}
