"""What every kind of run shares: its output directory, the checkpoint it goes on from, its records, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import PrinterCallback, TrainerState

from bases.compute import dtype_name
from trainer.base_model import Base, trained_dtype
from trainer.config.loading import dump_config
from trainer.config.schema import TrainConfig
from trainer.distributed import processes
from trainer.distributed.shards import shape_of
from trainer.errors import ConfigError
from trainer.files import BASE_DIR, CONFIG_FILE, write_whole
from trainer.loop.callbacks import EarlyStopping, RecordCallback, StopCallback, peak_memory_mb, stop_on_signals
from trainer.loop.checkpoint import STATE_FILE, RunIdentity, check_identity, identity_of, saved_step
from trainer.loop.finite import NotFiniteError
from trainer.loop.output import check_output, make_output, write_record
from trainer.loop.records import (
    METRICS_FILE,
    PLOT_FILE,
    TENSORBOARD_DIR,
    MetricsFile,
    TensorBoardFile,
    plot_losses,
    read_metrics,
    require_tensorboard,
    require_trackers,
)
from trainer.loop.start import begin_with, read_start
from trainer.methods import trainable_parameters
from trainer.progress import Display


@dataclass(frozen=True)
class RunResult:
    """What a run left behind: a ``package``, or a ``base`` after full fine-tuning.

    Neither, and ``stopped_by`` the signal, when it was interrupted.
    """

    output: Path
    package: Path | None
    steps: int
    metrics: dict[str, float]
    stopped_by: int | None = None
    base: Path | None = None


class TrainingSession:
    """One run. ``config`` is the given one with what ``auto`` stands for on this machine."""

    def __init__(self, config: TrainConfig, *, resume: bool | str, overwrite: bool, display: Display) -> None:
        """Read what it starts from, see that it can be written and find the checkpoint to go on from.

        Raises ConfigError, CheckpointError.
        """
        if config.training.tensorboard:
            require_tensorboard()
        require_trackers(config.training.trackers)
        self.start = read_start(Path(config.start_from)) if config.start_from else None
        self.output = Path(config.output)
        self.display = display
        self.checkpoint = processes.from_main(lambda: check_output(self.output, resume, overwrite))
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        self.config = _resolved(config)
        if config.training.dtype == "float16" != self.config.training.dtype:
            display.message(f"float16 is for CUDA devices: this CPU computes in {self.config.training.dtype}")
        self.scores: Sequence[str] = config.training.generate_metrics
        """Names of what is measured at each evaluation beside the loss."""
        self._stop = StopCallback()
        self._records: list[MetricsFile | TensorBoardFile] = []
        self._cpu_began = 0.0

    @property
    def resume_step(self) -> int | None:
        """The step after which this run goes on."""
        return saved_step(self.checkpoint) if self.checkpoint else None

    def identify(self, base: Base, data_sha256: str) -> RunIdentity:
        """The identity of this run. Raises CheckpointError when it goes on from a checkpoint of another."""
        start = self.start.sha256 if self.start else None
        identity = identity_of(self.config, base.fingerprint, data_sha256, start)
        if self.checkpoint:
            check_identity(self.checkpoint, identity)
        return identity

    def begin(self, model: Any, base: Base, put: Callable[..., None] = begin_with) -> None:
        """Put what this run starts from, if anything, into ``model``, which has a fresh adapter. Raises ConfigError.

        ``put`` does so, as ``begin_with``.
        """
        if self.start:
            put(self.start, model, base, msgspec.to_builtins(self.config.method))
            self.start = replace(self.start, tensors={})  # a whole model's, with some methods

    def open_records(self, base: Base, data: dict[str, Any]) -> None:
        """Write config.yaml and run.json, and open the metrics: from here on the directory holds this run alone.

        Raises CheckpointError, in every process.
        """
        self.checkpoint = processes.from_main(lambda: self._open_records(base, data))

    def _open_records(self, base: Base, data: dict[str, Any]) -> Path | None:
        checkpoint = make_output(self.output, self.config, self.checkpoint)
        write_config(self.output, self.config)
        start = {"start_from": {"path": str(self.start.path), "sha256": self.start.sha256}} if self.start else {}
        write_record(self.output, self.config, base, {"data": data, **start}, self.resume_step)
        self._records = [MetricsFile(self.output / METRICS_FILE, resume_step=self.resume_step)]
        if self.config.training.tensorboard:
            self._records.append(TensorBoardFile(self.output / TENSORBOARD_DIR, resume_step=self.resume_step))
        return checkpoint

    def run(self, trainer: Any) -> float:
        """Run ``trainer`` to the end, to its early stop or to a signal; returns the seconds it took."""
        began, self._cpu_began = time.monotonic(), time.process_time()
        early = self._early_stopping()
        if self.checkpoint and self._has_ended(TrainerState.load_from_json(str(self.checkpoint / STATE_FILE)), trainer):
            trainer.restore(self.checkpoint)  # transformers would train one more step
            self._plot()
            return time.monotonic() - began
        trainer.remove_callback(PrinterCallback)
        records = RecordCallback(self._records, self.display, trainer, self.scores)
        for callback in (self._stop, early, records):
            if callback:
                trainer.add_callback(callback)
        if self.checkpoint:
            trainer.args.eval_on_start = False  # what the run began with was evaluated then
        with stop_on_signals(self._stop):
            try:
                trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
                trainer.require_finite()
            except NotFiniteError as error:
                if error.record:
                    self.append(error.record)
                self._plot()
                raise
            finally:
                self.display.stop()
        if early and early.is_over(trainer.state.log_history):
            self.display.message(f"stopped early at step {trainer.state.global_step}: {early.reason()}")
        self._plot()
        return time.monotonic() - began

    def interrupted(self, trainer: Any) -> RunResult | None:
        """What there is after a signal that came before the end."""
        if self._stop.signal is None or self._has_ended(trainer.state, trainer):
            return None
        return RunResult(self.output, None, trainer.state.global_step, {}, self._stop.signal)

    def result(self, trainer: Any, made: Path, metrics: dict[str, float]) -> RunResult:
        """The end of a run that wrote ``made``."""
        is_base = made.name == BASE_DIR
        return RunResult(
            self.output, None if is_base else made, trainer.state.global_step, metrics, base=made if is_base else None
        )

    def summary(self, trainer: Any, seconds: float) -> dict[str, float]:
        """The losses, time and memory of the whole run, and how much of the model it trained."""
        history: Sequence[dict[str, Any]] = trainer.state.log_history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        figures = {"train_loss": losses[-1]} if losses else {}
        validation = [entry for entry in history if "eval_loss" in entry and entry["step"]]  # not what it began with
        if validation:
            best = self.config.training.best_checkpoint
            entry = min(validation, key=lambda entry: entry["eval_loss"]) if best else validation[-1]
            figures["validation_loss"] = entry["eval_loss"]
            scores = [name for name in self.scores if f"eval_{name}" in entry]
            figures |= {name: entry[f"eval_{name}"] for name in scores}
        figures["trainable_parameters"] = _count_trainable(trainer.model)
        figures["train_seconds"] = round(seconds, 3)
        figures["cpu_seconds"] = round(time.process_time() - self._cpu_began, 3)  # holds on a shared machine too
        figures["tokens_per_second"] = round(trainer.tokens_seen / seconds, 1)
        figures["peak_memory_mb"] = round(peak_memory_mb(), 1)
        return figures

    def append(self, record: dict[str, Any]) -> None:
        """Add ``record``, which must hold ``step``, to the metrics."""
        for records in self._records:
            records.append(record)

    def _plot(self) -> None:
        if processes.is_main():
            plot_losses(read_metrics(self.output / METRICS_FILE), self.output / PLOT_FILE)

    def _has_ended(self, state: TrainerState, trainer: Any) -> bool:
        early = self._early_stopping()
        return state.global_step >= trainer.args.max_steps or bool(early and early.is_over(state.log_history))

    def _early_stopping(self) -> EarlyStopping | None:
        training = self.config.training
        patience = training.early_stopping
        return EarlyStopping(patience, training.early_stopping_min_delta) if patience else None


def describe(config: TrainConfig, base: Base, model: Any, *, train_rows: int, validation_rows: int) -> str:
    """The run in one line."""
    learned = config.preference or config.reading
    method = f"{learned.KIND} of {config.method.KIND}" if learned else config.method.KIND
    quantize = "" if config.training.quantize == "none" else f" {config.training.quantize}"
    return (
        f"{method} on {base.name}{quantize} ({dtype_name(base.dtype)}): {_count_trainable(model):,} "
        f"trainable parameters, {train_rows} rows to train, {validation_rows} to validate"
    )


def _count_trainable(model: Any) -> int:
    """Of all processes together, before and after ``model`` is divided among them."""
    return sum(shape_of(value).numel() for value in trainable_parameters(model).values())


def write_config(output: Path, config: TrainConfig) -> None:
    """Write ``config`` into ``output``, all or nothing."""
    write_whole(output / CONFIG_FILE, dump_config(config))


def _resolved(config: TrainConfig) -> TrainConfig:
    """``config`` with the dtype that ``auto`` means here and the threads in use: they decide the last bits."""
    dtype = dtype_name(trained_dtype(config.training.dtype))
    training = msgspec.structs.replace(config.training, dtype=dtype, threads=torch.get_num_threads())
    return msgspec.structs.replace(config, training=training)


def context_of(model_config: Any, config: TrainConfig) -> int | None:
    """How many tokens the base has positions for beside the method's virtual ones; None where it does not say."""
    positions: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else positions - getattr(config.method, "tokens", 0)


def split_within(model_config: Any, config: TrainConfig) -> TrainConfig:
    """``config`` whose long texts, where they are split, are split at the base's positions if not before."""
    room = context_of(model_config, config) or 0
    if config.data.too_long != "split" or not _SHORTEST <= room < config.data.max_length:
        return config
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, max_length=room))


_SHORTEST = 8  # tokens that data.max_length allows at least


def check_context(model_config: Any, config: TrainConfig, longest: int) -> None:
    """Raise ConfigError when ``longest`` tokens and the method's virtual ones are more than the base has positions.

    With GRPO the model writes its own answers behind them. A base with a table of positions would fail on such a
    row, and one with rotary positions learn what no server of it answers. Bases whose configuration names no positions
    (BLOOM, T5) take any row.
    """
    context = context_of(model_config, config)
    virtual = getattr(config.method, "tokens", 0)
    answer = getattr(config.preference, "max_completion_length", 0)
    if context is None or longest + answer <= context:
        return
    beside = f" beside the method's {virtual} virtual tokens" if virtual else ""
    behind = f" and {answer} of preference.max_completion_length behind them" if answer else ""
    room = context - answer
    advice = (
        f"set data.max_length to {room} at most"
        if room >= _SHORTEST
        else "lower what is beside it, or take a base with more"
    )
    raise ConfigError(
        f"data.max_length: the longest row has {longest} tokens{beside}{behind}, and the base has {context + virtual} "
        f"positions; {advice}"
    )
