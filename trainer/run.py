"""One training run from configuration to package: ``train(config)``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from adapters.package.manifest import DataRef
from trainer.base_model import Base, fitted, load_base
from trainer.config.schema import DIVIDED, TrainConfig
from trainer.config.task import ReadingTask
from trainer.data.batches import pack
from trainer.data.disk import lengths_of
from trainer.data.splits import progress_messages
from trainer.data.training_data import TrainingData, load_data
from trainer.distributed import processes
from trainer.distributed.shards import put, shard
from trainer.distributed.strategies import check_processes, undivided
from trainer.errors import ConfigError, EvaluationError
from trainer.evaluation.metrics import find_metrics
from trainer.evaluation.metrics.reading import reading_metrics
from trainer.evaluation.scoring import score_texts
from trainer.export.result import export_result
from trainer.loop.checkpoint import whole_parameters
from trainer.loop.failures import explained
from trainer.loop.greedy import ScoredAnswers, exact_match
from trainer.loop.loss import LabelledHead
from trainer.loop.packed_attention import check_packing, use_packed_attention
from trainer.loop.session import RunResult, TrainingSession, check_context, context_of, describe, split_within
from trainer.loop.trainer import AdapterTrainer, autocasts, make_arguments, total_steps
from trainer.methods import apply_method, trainable_parameters
from trainer.progress import Display, SilentDisplay

if TYPE_CHECKING:
    from trainer.pooling.answers import Score


def train(
    config: TrainConfig, *, resume: bool | str = False, overwrite: bool = False, display: Display | None = None
) -> RunResult:
    """Train as ``config`` says, from the last checkpoint of its output when ``resume`` is set.

    ``resume`` may also name a checkpoint, or the folder of a run with one, here or elsewhere.

    Leaves config.yaml, run.json, metrics.jsonl, loss.png, checkpoints and the package ``adapter`` in the output
    directory. Raises TrainerError, or BaseModelError for the base.
    """
    check_processes(config)
    config, word = undivided(config)
    with explained(config), processes.joined():
        config = fitted(config)
        shown = display if display and processes.is_main() else SilentDisplay()
        if word:
            shown.message(word)
        session = TrainingSession(config, resume=resume, overwrite=overwrite, display=shown)
        if config.preference:
            from trainer.preference.run import train_preference

            return train_preference(session)
        if config.reading:
            return _train_reading(session, config.reading)
        return _train(session)


def _train_reading(session: TrainingSession, task: ReadingTask) -> RunResult:
    from trainer.pooling.run import train_pooled

    return train_pooled(session, task, reading_score)


def reading_score(learned: str) -> Score:
    """The score of what a run that reads learns: its task's name, or similarity."""
    from trainer.pooling.answers import Score

    names = reading_metrics(learned)
    return Score(names, partial(score_texts, find_metrics(names)))


def _train(session: TrainingSession) -> RunResult:
    config = session.config
    base = load_base(config)
    session.config = split_within(base.model.config, config)
    if session.config != config:
        session.display.message(
            f"texts are split at {session.config.data.max_length} tokens, which the base has room for"
        )
    config = _with_packing(session, base)
    progress = progress_messages(session.display.message)
    data = load_data(config.data, base.tokenizer, base.end_ids, config.training.seed, progress)
    base.collator()([data.train[0]])  # before anything is written: rows of plain text are not for every base
    for note in data.notes:
        session.display.message(note)
    answers = _scored_answers(config, base, data)
    if config.training.generate_rows and not answers:
        session.display.message("training.generate_rows: the rows are plain text, in which nothing is answered")
    identity = session.identify(base, data.sha256)
    set_seed(config.training.seed)
    packing = pack(data.train, config.data.max_length) if config.training.packing else None
    rows = len(packing or data.train)
    if packing:
        session.display.message(
            f"packed: {len(data.train):,} examples in {rows:,} rows of {config.data.max_length} tokens"
        )
    model = apply_method(base, config.method, total_steps(config.training, rows))
    check_context(base.model.config, config, max([*lengths_of(data.train), *lengths_of(data.validation)]))
    if packing:
        use_packed_attention(base.model)
        check_packing(model, base.model.config.vocab_size)
    session.begin(model, base)
    arguments = make_arguments(config, rows)
    counts = {"train_rows": len(data.train), "validation_rows": len(data.validation)}
    session.display.message(describe(config, base, model, **counts))
    session.open_records(base, {"sha256": data.sha256, **counts, "dropped": data.dropped})
    if config.training.strategy == "fsdp":
        shard(model, torch.bfloat16 if autocasts(session.config) else None)
    trainer = AdapterTrainer(
        model, arguments, data, base, config=config, identity=identity, packing=packing, answers=answers
    )
    processes.reseed(config.training.seed)
    seconds = session.run(trainer)
    if stopped := session.interrupted(trainer):
        return stopped
    trained = whole_parameters(model) if config.training.strategy in DIVIDED else None
    return processes.from_main(lambda: _finish(session, base, data, trainer, seconds=seconds, trained=trained))


def _scored_answers(config: TrainConfig, base: Base, data: TrainingData) -> ScoredAnswers | None:
    """What is made of answers at each evaluation; None where there is nothing to answer. Raises ConfigError."""
    training = config.training
    questions = data.questions[: training.generate_rows]
    if not questions:
        return None
    try:
        metrics = find_metrics(training.generate_metrics)
        if reading := [metric.name for metric in metrics if metric.from_logprobs]:
            raise EvaluationError(f"{reading[0]} is of responses, not of answers; leave it out")
        score_texts(metrics, *([question.response for question in questions],) * 2)
    except EvaluationError as error:
        raise ConfigError(f"training.generate_metrics: {error}") from error
    context = context_of(base.model.config, config)
    return ScoredAnswers(base, questions, partial(score_texts, metrics), training.generate_max_tokens, context)


def _with_packing(session: TrainingSession, base: Base) -> TrainConfig:
    """The configuration of ``session``, in which ``packing: auto`` is what ``base`` allows."""
    training = session.config.training
    if training.packing == "auto":
        use_packed_attention(base.model)
        try:
            check_packing(base.model, base.model.config.vocab_size)
        except ConfigError as error:
            session.display.message(f"not packed: {error}")
            training = msgspec.structs.replace(training, packing=False)
        else:
            training = msgspec.structs.replace(training, packing=True)
        session.config = msgspec.structs.replace(session.config, training=training)
    return session.config


def _finish(
    session: TrainingSession,
    base: Base,
    data: TrainingData,
    trainer: AdapterTrainer,
    *,
    seconds: float,
    trained: dict[str, Tensor] | None,
) -> RunResult:
    """Evaluate, export and account for the run; ``trained`` is what it changed of a divided model, all of it."""
    model, head = trainer.model, trainer.head
    if trained is not None:
        base, model = _rebuilt(session.config, trained, trainer.state.max_steps)
        head = LabelledHead(model)
    results = session.summary(trainer, seconds) | _answers(session.config, base, data, model, head)
    session.append({"step": trainer.state.global_step, **results})
    reference = DataRef(sha256=data.sha256, rows=len(data.train), tools=data.tools)
    made = export_result(model, base, session.config, data=reference, metrics=results)
    return session.result(trainer, made, results)


def _rebuilt(config: TrainConfig, trained: dict[str, Tensor], steps: int) -> tuple[Base, Any]:
    """The base and the trained model, undivided."""
    unset_hf_deepspeed_config()  # transformers would divide it again
    base = load_base(config)
    model = apply_method(base, config.method, steps)
    for name, parameter in trainable_parameters(model).items():
        put(parameter, trained[name])
    return base, model


def _answers(config: TrainConfig, base: Base, data: TrainingData, model: Any, head: LabelledHead) -> dict[str, float]:
    questions = data.questions[: config.training.exact_match_rows]
    if not questions:
        return {}
    return {
        "exact_match": exact_match(model, head, base, questions, context_of(base.model.config, config)),
        "exact_match_rows": len(questions),
    }
