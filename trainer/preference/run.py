"""One run of preference training from configuration to package: ``train_preference(config)``."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from adapters.manifest import DataRef
from trainer.base_model import Base, load_base
from trainer.config.preference import DpoPreference, KtoPreference, Preference
from trainer.config.schema import TrainConfig
from trainer.data.load import describe_dropped
from trainer.export import PACKAGE_DIR, export_adapter
from trainer.loop.trainer import make_arguments, total_steps
from trainer.methods import apply_method, trainable_parameters
from trainer.preference.extra import require_trl
from trainer.preference.work import DpoWork, KtoWork, Work
from trainer.session import RunResult, Session


def train_preference(session: Session) -> RunResult:
    """As ``trainer.run.train``, for a configuration with ``preference``."""
    config = session.config
    assert config.preference is not None
    require_trl(config.preference.KIND)
    base = load_base(config)
    work = make_work(config, config.preference, base)
    if work.data.dropped:
        session.display.message(f"left out {describe_dropped(work.data.dropped)}")
    identity = session.identify(base, work.data.sha256)
    set_seed(config.training.seed)
    model = apply_method(base, config.method, total_steps(config.training, work.steps_rows()))
    session.display.message(_headline(config, base, work, model))
    session.open_records(base, {"sha256": work.data.sha256, "train_rows": len(work.data.train)})
    trainer = work.trainer(model, make_arguments(config, work.steps_rows()), [])
    trainer.identity = identity
    seconds = session.run(trainer)
    return session.interrupted(trainer) or _finish(session, base, work, trainer, seconds)


def _finish(session: Session, base: Base, work: Work, trainer: Any, seconds: float) -> RunResult:
    results = session.summary(trainer, seconds) | work.figures(trainer)
    session.append({"step": trainer.state.global_step, **results})
    package = session.output / PACKAGE_DIR
    reference = DataRef(sha256=work.data.sha256, rows=len(work.data.train))
    export_adapter(trainer.trained, base, session.config, package, data=reference, metrics=results)
    return RunResult(session.output, package, trainer.state.global_step, results)


def make_work(config: TrainConfig, preference: Preference, base: Base) -> Work:
    """The work that ``preference`` asks for, its data loaded and the reference's scores of it computed."""
    if isinstance(preference, DpoPreference):
        return DpoWork(config, preference, base)
    if isinstance(preference, KtoPreference):
        return KtoWork(config, preference, base)
    raise NotImplementedError


def _headline(config: TrainConfig, base: Base, work: Work, model: Any) -> str:
    assert config.preference is not None
    count = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    quantize = "" if config.training.quantize == "none" else f" {config.training.quantize}"
    return (
        f"{config.preference.KIND} of {config.method.KIND} on {base.name}{quantize} "
        f"({str(base.dtype).removeprefix('torch.')}): {count:,} trainable parameters, "
        f"{len(work.data.train)} rows to train, {len(work.data.validation)} to validate"
    )
