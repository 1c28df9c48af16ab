"""One run of preference training from configuration to package: ``train_preference(session)``."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from trainer.base_model import Base, load_base
from trainer.config.preference import GrpoPreference
from trainer.config.schema import TrainConfig
from trainer.context import check_context
from trainer.data.survey import describe_dropped
from trainer.loop.trainer import make_arguments, total_steps
from trainer.methods import apply_method, trainable_parameters
from trainer.preference.extra import require_trl
from trainer.preference.kinds import make_work
from trainer.preference.work import Work
from trainer.session import RunResult, Session


def train_preference(session: Session) -> RunResult:
    """As ``trainer.run.train``, for a configuration with ``preference``."""
    config = session.config
    assert config.preference is not None
    require_trl(config.preference.KIND)
    base = load_base(config)
    work = make_work(config, base)
    if work.data.dropped:
        session.display.message(f"left out {describe_dropped(work.data.dropped)}")
    answer = config.preference.max_completion_length if isinstance(config.preference, GrpoPreference) else 0
    check_context(base.model.config, config, work.data.longest, answer=answer)
    identity = session.identify(base, work.data.sha256)
    if not session.start:
        work.refer_to(base.model)  # what it was without an adapter: not every method can be switched off
    set_seed(config.training.seed)
    model = apply_method(base, config.method, total_steps(config.training, work.steps_rows()))
    session.begin(model, base)
    if session.start:
        work.refer_to(model)
    arguments = make_arguments(config, work.steps_rows())
    session.display.message(_headline(config, base, work, model))
    session.open_records(base, {"sha256": work.data.sha256, "train_rows": len(work.data.train)})
    trainer = work.trainer(model, arguments, [])
    trainer.identity = identity
    seconds = session.run(trainer)
    return session.interrupted(trainer) or _finish(session, work, trainer, seconds)


def _finish(session: Session, work: Work, trainer: Any, seconds: float) -> RunResult:
    results = session.summary(trainer, seconds) | work.figures(trainer)
    session.append({"step": trainer.state.global_step, **results})
    return session.result(trainer, work.export(trainer, results), results)


def _headline(config: TrainConfig, base: Base, work: Work, model: Any) -> str:
    assert config.preference is not None
    count = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    quantize = "" if config.training.quantize == "none" else f" {config.training.quantize}"
    return (
        f"{config.preference.KIND} of {config.method.KIND} on {base.name}{quantize} "
        f"({str(base.dtype).removeprefix('torch.')}): {count:,} trainable parameters, "
        f"{len(work.data.train)} rows to train, {len(work.data.validation)} to validate"
    )
