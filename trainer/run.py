"""One training run from configuration to package: ``train(config)``."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from adapters.manifest import DataRef
from trainer.base_model import Base, load_base
from trainer.config.file import dump_config
from trainer.config.schema import TrainConfig
from trainer.data.load import TrainingData, describe_dropped, load_data
from trainer.data.packing import pack
from trainer.errors import CheckpointError
from trainer.evaluation.greedy import exact_match
from trainer.export import PACKAGE_DIR, export_adapter
from trainer.loop.callbacks import RecordCallback, StopCallback, peak_memory_mb, stop_on_signals
from trainer.loop.checkpoint import check_identity, checkpoints, identity_of, step_of
from trainer.loop.metrics import METRICS_FILE, MetricsFile, read_metrics
from trainer.loop.packing import check_packing
from trainer.loop.plot import PLOT_FILE, plot_losses
from trainer.loop.progress import Display, SilentDisplay
from trainer.loop.trainer import AdapterTrainer, make_arguments, total_steps
from trainer.methods import apply_method, trainable_parameters

CONFIG_FILE = "config.yaml"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind. ``package`` is None and ``stopped_by`` the signal when it was interrupted."""

    output: Path
    package: Path | None
    steps: int
    metrics: dict[str, float]
    stopped_by: int | None = None


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, display: Display | None = None
) -> RunResult:
    """Train as ``config`` says, from the last checkpoint of its output when ``resume`` is set.

    Leaves config.yaml, metrics.jsonl, loss.png, checkpoints and the package ``adapter`` in the output directory.
    Raises TrainerError, or BaseModelError for the base.
    """
    display = display or SilentDisplay()
    if config.preference:
        from trainer.preference.run import train_preference

        return train_preference(config, resume=resume, overwrite=overwrite, display=display)
    output = Path(config.output)
    checkpoint = _open_output(output, resume, overwrite)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    base = load_base(config)
    data = load_data(config.data, base.tokenizer, base.end_ids, config.training.seed)
    if data.dropped:
        display.message(f"left out {describe_dropped(data.dropped)}")
    identity = identity_of(config, base.fingerprint, data.sha256)
    if checkpoint:
        check_identity(checkpoint, identity)
    set_seed(config.training.seed)
    packing = pack(data.train, config.data.max_length) if config.training.packing else None
    rows = len(packing or data.train)
    model = apply_method(base, config.method, total_steps(config.training, rows))
    if packing:
        check_packing(model, base.model.config.vocab_size)
    display.message(_headline(config, base, data, model))
    _write_config(output, config)
    metrics = MetricsFile(output / METRICS_FILE, resume_step=step_of(checkpoint) if checkpoint else None)
    stop = StopCallback()
    trainer = AdapterTrainer(
        model,
        make_arguments(config, rows),
        data,
        base.pad_id,
        identity=identity,
        callbacks=[stop],
        packing=packing,
    )
    trainer.add_callback(RecordCallback(metrics, display, lambda: trainer.tokens_seen))
    seconds = _run(trainer, stop, display, checkpoint)
    plot_losses(read_metrics(output / METRICS_FILE), output / PLOT_FILE)
    if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
        return RunResult(output, None, trainer.state.global_step, {}, stop.signal)
    return _finish(config, base, data, trainer, seconds=seconds, metrics=metrics)


def _run(trainer: AdapterTrainer, stop: StopCallback, display: Display, checkpoint: Path | None) -> float:
    """Train; returns the seconds it took."""
    began = time.monotonic()
    if checkpoint and step_of(checkpoint) >= trainer.args.max_steps:
        trainer.restore(checkpoint)  # transformers would train one more step
        return time.monotonic() - began
    trainer.remove_callback(PrinterCallback)
    with stop_on_signals(stop):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            display.stop()
    return time.monotonic() - began


def _finish(
    config: TrainConfig,
    base: Base,
    data: TrainingData,
    trainer: AdapterTrainer,
    *,
    seconds: float,
    metrics: MetricsFile,
) -> RunResult:
    """Evaluate, export and account for the run."""
    results = _results(config, base, data, trainer, seconds)
    metrics.append({"step": trainer.state.global_step, **results})
    package = Path(config.output) / PACKAGE_DIR
    reference = DataRef(sha256=data.sha256, rows=len(data.train))
    export_adapter(trainer.model, base, config, package, data=reference, metrics=results)
    return RunResult(Path(config.output), package, trainer.state.global_step, results)


def _results(
    config: TrainConfig, base: Base, data: TrainingData, trainer: AdapterTrainer, seconds: float
) -> dict[str, float]:
    history: list[dict[str, Any]] = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    results = {"train_loss": losses[-1]} if losses else {}
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    if validation:
        results["validation_loss"] = min(validation) if config.training.best_checkpoint else validation[-1]
    count = config.training.exact_match_rows
    if count:
        questions = data.questions[:count]
        results["exact_match"] = exact_match(trainer.model, trainer.head, base, questions)
        results["exact_match_rows"] = len(questions)
    results["train_seconds"] = round(seconds, 3)
    results["tokens_per_second"] = round(trainer.tokens_seen / seconds, 1)
    results["peak_memory_mb"] = round(peak_memory_mb(), 1)
    return results


def _open_output(output: Path, resume: bool, overwrite: bool) -> Path | None:
    """Make ``output`` ready; returns the checkpoint to resume from."""
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is not a directory")
    found = checkpoints(output)
    if resume:
        if not found:
            raise CheckpointError(f"there is no complete checkpoint in {output}; train without --resume")
        return found[-1]
    if (output / CONFIG_FILE).exists():
        if not overwrite:
            raise CheckpointError(f"{output} holds a run already: go on with --resume, or start anew with --overwrite")
        _clear(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be created: {error.strerror}") from error
    return None


def _clear(output: Path) -> None:
    """Remove an older run's own files. Its package stays until the new one takes its place."""
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
    for name in (METRICS_FILE, PLOT_FILE, CONFIG_FILE):
        (output / name).unlink(missing_ok=True)


def _write_config(output: Path, config: TrainConfig) -> None:
    scratch = output / f".{CONFIG_FILE}"
    scratch.write_text(dump_config(config), encoding="utf-8")
    os.replace(scratch, output / CONFIG_FILE)


def _headline(config: TrainConfig, base: Base, data: TrainingData, model: Any) -> str:
    count = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    quantize = "" if config.training.quantize == "none" else f" {config.training.quantize}"
    return (
        f"{config.method.KIND} on {base.name}{quantize} ({str(base.dtype).removeprefix('torch.')}): "
        f"{count:,} trainable parameters, {len(data.train)} rows to train, {len(data.validation)} to validate"
    )
