"""Runs a sweep: one trial after another, each in its own directory, going on where an earlier attempt ended."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from adapters.errors import AdapterError, BaseModelError
from trainer.config.file import dump_config, load_config
from trainer.config.keys import is_prose
from trainer.config.layers import meaning_of
from trainer.config.preference import GrpoPreference
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError, TrainerError
from trainer.loop.checkpoint import checkpoints
from trainer.loop.failures import explained
from trainer.loop.progress import Display
from trainer.output import check_output
from trainer.run import train
from trainer.run_files import CONFIG_FILE
from trainer.sweep.grid import Trial, trials_of
from trainer.sweep.results import Outcome, rank, read_outcomes, write_outcomes

METRICS = ("validation_loss", "train_loss", "exact_match", "reward_accuracy", "reward_after")


@dataclass(frozen=True)
class SweepResult:
    """The runs, best first by ``metric``. ``stopped_by`` is the signal that ended the sweep before its end."""

    output: Path
    metric: str
    runs: list[Outcome]
    stopped_by: int | None = None


def sweep(
    path: Path | None,
    settings: Sequence[str],
    *,
    metric: str | None = None,
    draw: int | None = None,
    overwrite: bool = False,
    display: Display,
) -> SweepResult:
    """Train the configuration in ``path`` with every combination of the ``settings`` that have several values.

    Runs that are finished are not repeated, interrupted ones go on. A run that fails is noted and the next begins.
    Raises ConfigError before anything runs when a trial's configuration is wrong.
    """
    fixed, trials = trials_of(settings, is_prose=_is_prose)
    shared = load_config(path, [*fixed, *trials[0].overrides])
    if draw is not None:
        trials = trials_of(settings, draw, shared.training.seed, is_prose=_is_prose)[1]
    output = Path(shared.output)
    check_output(output, resume=False, overwrite=True)
    configs = {trial.name: _config(path, fixed, trial, output) for trial in trials}
    metric = _metric(metric, list(configs.values()))
    known = {} if overwrite else read_outcomes(output)
    for name, config in configs.items():
        if name in known and known[name].error is None and known[name].settings != _hash(config):
            raise ConfigError(f"{output} holds a sweep with other settings; use another output, or --overwrite")
    outcomes = {name: run for name, run in known.items() if run.error is None}
    for at, trial in enumerate(trials, 1):
        if trial.name in outcomes:
            continue
        display.message(f"run {at} of {len(trials)}: {' '.join(trial.overrides)}")
        outcome = _run(trial, configs[trial.name], overwrite=overwrite, display=display)
        if isinstance(outcome, int):
            return SweepResult(output, metric, rank(list(outcomes.values()), metric), outcome)
        if outcome.error:
            display.message(f"failed: {outcome.error}")
        outcomes[trial.name] = outcome
        with explained(shared):
            write_outcomes(output, list(outcomes.values()), metric)
    return SweepResult(output, metric, rank(list(outcomes.values()), metric))


def _is_prose(key: str) -> bool:
    return is_prose(meaning_of(key))


def _config(path: Path | None, fixed: Sequence[str], trial: Trial, output: Path) -> TrainConfig:
    config = load_config(path, [*fixed, *trial.overrides])
    return msgspec.structs.replace(config, output=str(output / trial.name))


def _metric(metric: str | None, configs: Sequence[TrainConfig]) -> str:
    """The metric to rank by. Raises ConfigError when a run would not have it."""
    validates = all(config.data.validation != 0 for config in configs)
    if metric is None:
        grpo = any(isinstance(config.preference, GrpoPreference) for config in configs)
        metric = "reward_after" if grpo else "validation_loss" if validates else "train_loss"
    if metric not in METRICS:
        raise ConfigError(f"--metric: {metric!r} is none of {', '.join(METRICS)}")
    if metric != "train_loss" and not validates:
        raise ConfigError(f"--metric {metric}: there are no validation rows (data.validation is 0)")
    if metric == "exact_match" and not all(config.training.exact_match_rows for config in configs):
        raise ConfigError("--metric exact_match: say on how many validation rows with exact_match_rows")
    for config in configs:
        _check_metric(metric, config)
    return metric


def _check_metric(metric: str, config: TrainConfig) -> None:
    kind = config.preference.KIND if config.preference else "supervised"
    runs = {"reward_after": ("grpo",), "reward_accuracy": ("dpo", "kto", "reward")}.get(metric)
    if runs and kind not in runs:
        raise ConfigError(f"--metric {metric}: it is of {', '.join(runs)}, and a run is {kind}")
    if metric == "validation_loss" and kind == "grpo":
        raise ConfigError("--metric validation_loss: grpo measures the held-out reward instead; give reward_after")


def _run(trial: Trial, config: TrainConfig, *, overwrite: bool, display: Display) -> Outcome | int:
    """Train; the signal when it was interrupted."""
    directory = Path(config.output)
    resume = bool(checkpoints(directory)) and (directory / CONFIG_FILE).is_file() and not overwrite
    outcome = Outcome(trial.name, trial.values, _hash(config))
    try:
        result = train(config, resume=resume, overwrite=not resume, display=display)
    except (TrainerError, AdapterError, BaseModelError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return msgspec.structs.replace(outcome, error=reason)
    finally:
        gc.collect()  # the model of this run, before the next is loaded
    if result.stopped_by is not None:
        return result.stopped_by
    made = result.package or result.base
    return msgspec.structs.replace(outcome, package=str(made), metrics=result.metrics)


def _hash(config: TrainConfig) -> str:
    return hashlib.sha256(dump_config(msgspec.structs.replace(config, output=".")).encode()).hexdigest()
