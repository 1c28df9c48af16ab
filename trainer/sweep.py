"""Sweeps: every combination of settings with several values is trained, in a directory of its own, and ranked.

sweep.json keeps what the runs came to, so that the same command goes on where an earlier attempt ended.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trainer.config.keys import is_prose
from trainer.config.loading import dump_config, load_config, meaning_of
from trainer.config.preference import GrpoPreference
from trainer.config.schema import TrainConfig
from trainer.errors import CheckpointError, ConfigError
from trainer.files import CONFIG_FILE, write_json, write_whole
from trainer.loop.checkpoint import checkpoints
from trainer.loop.failures import explained
from trainer.loop.output import check_output
from trainer.progress import Display
from trainer.run import train
from trainer.tables import aligned

_LONGEST_NAME = 100


@dataclass(frozen=True)
class Trial:
    """One run: the values that are its own, as ``key=value``, and a name made of them for its directory."""

    name: str
    values: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        """The values as settings."""
        return [f"{key}={value}" for key, value in self.values.items()]


def trials_of(
    settings: Sequence[str],
    draw: int | None = None,
    seed: int = 0,
    *,
    is_prose: Callable[[str], bool] = lambda _: False,
) -> tuple[list[str], list[Trial]]:
    """The settings that all runs share, and every combination of the values of the others; ``draw`` takes so many.

    Commas inside brackets or quotes separate nothing, nor any in a key that ``is_prose`` unless its values are quoted.
    Raises ConfigError when nothing varies.
    """
    fixed: list[str] = []
    varied: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        values = list(dict.fromkeys(split_values(text)))
        if is_prose(key) and not all(re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL) for value in values):
            values = [text]
        if equals and len(values) > 1:
            varied[key] = values
        else:
            fixed.append(setting)
    if not varied:
        raise ConfigError("a sweep needs a setting with several values, such as learning_rate=1e-4,5e-4")
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    if draw is not None and draw < len(combinations):
        chosen = sorted(random.Random(seed).sample(range(len(combinations)), draw))
        combinations = [combinations[at] for at in chosen]
    return fixed, [Trial(_name(values), values) for values in combinations]


def split_values(text: str) -> list[str]:
    """``text`` at its commas, but for those in brackets or quotes: ``[q,v],[q]`` are two values."""
    return [part.strip() for part in _parts(text) if part.strip()]


def _parts(text: str) -> Iterator[str]:
    depth, quote, begin = 0, "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and (depth or not text[begin:at].strip()):  # not the one in: it's
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
    yield text[begin:]


def _name(values: dict[str, str]) -> str:
    """Short keys and values, safe in a path: ``learning_rate-1e-4_r-8``."""
    full = "_".join(f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in values.items())
    name = re.sub(r"[^\w.+-]+", "-", full)
    if name == full and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


RESULTS_FILE = "sweep.json"
TABLE_FILE = "sweep.md"
HIGHER_IS_BETTER = ("exact_match", "reward_accuracy", "reward_after", "tokens_per_second")


class TrialResult(msgspec.Struct, frozen=True):
    """One run. ``settings`` is the hash of its whole configuration; ``error`` is set when it failed."""

    name: str
    values: dict[str, str]
    settings: str
    package: str | None = None
    metrics: dict[str, float] = {}
    error: str | None = None


def read_results(output: Path) -> dict[str, TrialResult]:
    """The runs that ``output`` knows, by name; none without the file. Raises CheckpointError when it is broken."""
    path = output / RESULTS_FILE
    if not path.is_file():
        return {}
    try:
        runs = msgspec.convert(json.loads(path.read_text(encoding="utf-8"))["runs"], list[TrialResult])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read; remove it to start anew") from error
    return {run.name: run for run in runs}


def write_results(output: Path, outcomes: Sequence[TrialResult], metric: str) -> None:
    """Write sweep.json and sweep.md, the best run first, all or nothing."""
    ranked = rank_results(outcomes, metric)
    best = next((run.name for run in ranked if run.error is None), None)
    record = {"metric": metric, "best": best, "runs": msgspec.to_builtins(ranked)}
    output.mkdir(parents=True, exist_ok=True)  # a run that failed at once leaves none
    write_json(output / RESULTS_FILE, record)
    write_whole(output / TABLE_FILE, as_markdown(ranked, metric))


def rank_results(outcomes: Sequence[TrialResult], metric: str) -> list[TrialResult]:
    """Best first; runs without the metric after them, failed ones last; equals in the order given."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1

    def order(run: TrialResult) -> tuple[bool, bool, float]:
        value = run.metrics.get(metric, math.nan)
        return run.error is not None, math.isnan(value), 0.0 if math.isnan(value) else sign * value

    return sorted(outcomes, key=order)


def ranking_table(ranked: Sequence[TrialResult], metric: str) -> list[list[str]]:
    """Header and rows: rank, the values, the metric and other figures, or the error."""
    keys = list(dict.fromkeys(key for run in ranked for key in run.values))
    known = ("validation_loss", "exact_match", "reward_accuracy", "reward_after", "train_loss", "train_seconds")
    others = [name for name in known if name != metric and any(name in run.metrics for run in ranked)]
    rows = [["", *keys, metric, *others, ""]]
    for at, run in enumerate(ranked, 1):
        figures = [f"{run.metrics[name]:.5g}" if name in run.metrics else "" for name in (metric, *others)]
        rows.append([str(at), *(run.values.get(key, "") for key in keys), *figures, run.error or ""])
    return rows


def as_text(ranked: Sequence[TrialResult], metric: str) -> str:
    """The table for a terminal."""
    rows = ranking_table(ranked, metric)
    return aligned(rows[0], rows[1:], left=range(len(rows[0])))


def as_markdown(ranked: Sequence[TrialResult], metric: str) -> str:
    """The table as Markdown."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in ranking_table(ranked, metric)]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


METRICS = ("validation_loss", "train_loss", "exact_match", "reward_accuracy", "reward_after")


@dataclass(frozen=True)
class SweepResult:
    """The runs, best first by ``metric``. ``stopped_by`` is the signal that ended the sweep before its end."""

    output: Path
    metric: str
    runs: list[TrialResult]
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
    known = {} if overwrite else read_results(output)
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
            return SweepResult(output, metric, rank_results(list(outcomes.values()), metric), outcome)
        if outcome.error:
            display.message(f"failed: {outcome.error}")
        outcomes[trial.name] = outcome
        with explained(shared):
            write_results(output, list(outcomes.values()), metric)
    return SweepResult(output, metric, rank_results(list(outcomes.values()), metric))


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
        raise ConfigError(f"--metric: unknown metric {metric!r}; choose from {', '.join(METRICS)}")
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


def _run(trial: Trial, config: TrainConfig, *, overwrite: bool, display: Display) -> TrialResult | int:
    """Train; the signal when it was interrupted."""
    directory = Path(config.output)
    resume = bool(checkpoints(directory)) and (directory / CONFIG_FILE).is_file() and not overwrite
    outcome = TrialResult(trial.name, trial.values, _hash(config))
    try:
        result = train(config, resume=resume, overwrite=not resume, display=display)
    except Exception as error:  # noqa: BLE001 - whatever ended this run, the next one begins
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
