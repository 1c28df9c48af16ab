"""One run of preference training from configuration to package: ``train_preference(session)``.

A new kind of preference training is one line in ``make_task``.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from transformers import set_seed

from trainer.base_model import Base, load_base
from trainer.config.preference import DpoPreference, GrpoPreference, KtoPreference, RewardPreference
from trainer.config.schema import TrainConfig
from trainer.data.splits import describe_dropped
from trainer.errors import ConfigError
from trainer.loop.session import RunResult, TrainingSession, check_context, describe
from trainer.loop.trainer import make_arguments, total_steps
from trainer.methods import apply_method
from trainer.preference.preference_data import columns_note
from trainer.preference.reference_tasks import DpoTask, KtoTask
from trainer.preference.task import PreferenceTask


def require_trl(kind: str) -> None:
    """Raise ConfigError when trl is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError(f"preference.type: {kind} needs trl, which is an extra: pip install 'hotswap[preference]'")


def make_task(config: TrainConfig, base: Base) -> PreferenceTask:
    """What ``config.preference`` asks for, its data loaded."""
    preference = config.preference
    if isinstance(preference, DpoPreference):
        return DpoTask(config, preference, base)
    if isinstance(preference, KtoPreference):
        return KtoTask(config, preference, base)
    if isinstance(preference, RewardPreference):
        from trainer.preference.reward_model import RewardTask

        return RewardTask(config, preference, base)
    assert isinstance(preference, GrpoPreference)
    from trainer.preference.grpo import GrpoTask

    return GrpoTask(config, preference, base)


def train_preference(session: TrainingSession) -> RunResult:
    """As ``trainer.run.train``, for a configuration with ``preference``."""
    config = session.config
    assert config.preference is not None
    require_trl(config.preference.KIND)
    base = load_base(config)
    task = make_task(config, base)
    session.display.message(columns_note(task.data.columns, task.data.unread))
    if task.data.dropped:
        session.display.message(f"left out {describe_dropped(task.data.dropped)}")
    check_context(base.model.config, config, task.data.longest)
    identity = session.identify(base, task.data.sha256)
    if not session.start:
        task.compute_reference(base.model)  # what it was without an adapter: not every method can be switched off
    set_seed(config.training.seed)
    model = apply_method(base, config.method, total_steps(config.training, task.num_rows()))
    session.begin(model, base)
    if session.start:
        task.compute_reference(model)
    arguments = make_arguments(config, task.num_rows())
    counts = {"train_rows": len(task.data.train), "validation_rows": len(task.data.validation)}
    session.display.message(describe(config, base, model, **counts))
    session.open_records(base, {"sha256": task.data.sha256, "train_rows": len(task.data.train)})
    trainer = task.make_trainer(model, arguments, [])
    trainer.identity = identity
    seconds = session.run(trainer)
    return session.interrupted(trainer) or _finish(session, task, trainer, seconds)


def _finish(session: TrainingSession, task: PreferenceTask, trainer: Any, seconds: float) -> RunResult:
    results = session.summary(trainer, seconds) | task.evaluate(trainer)
    session.append({"step": trainer.state.global_step, **results})
    return session.result(trainer, task.export(trainer, results), results)
