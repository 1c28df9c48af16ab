"""One run of preference training from configuration to package: ``train_preference(config)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from adapters.manifest import DataRef
from trainer import run as runs
from trainer.base_model import Base, load_base
from trainer.config.preference import DpoPreference, KtoPreference, Preference
from trainer.config.schema import TrainConfig
from trainer.data.load import describe_dropped
from trainer.export import PACKAGE_DIR, export_adapter
from trainer.loop.callbacks import RecordCallback, StopCallback, peak_memory_mb
from trainer.loop.checkpoint import check_identity, identity_of, step_of
from trainer.loop.metrics import METRICS_FILE, MetricsFile, read_metrics
from trainer.loop.plot import PLOT_FILE, plot_losses
from trainer.loop.progress import Display
from trainer.loop.trainer import make_arguments, total_steps
from trainer.methods import apply_method, trainable_parameters
from trainer.preference.extra import require_trl
from trainer.preference.work import DpoWork, KtoWork, Work


def train_preference(config: TrainConfig, *, resume: bool, overwrite: bool, display: Display) -> runs.RunResult:
    """As ``trainer.run.train``, for a configuration with ``preference``."""
    assert config.preference is not None
    require_trl(config.preference.KIND)
    output = Path(config.output)
    checkpoint = runs._open_output(output, resume, overwrite)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    base = load_base(config)
    work = make_work(config, config.preference, base)
    if work.data.dropped:
        display.message(f"left out {describe_dropped(work.data.dropped)}")
    identity = identity_of(config, base.fingerprint, work.data.sha256)
    if checkpoint:
        check_identity(checkpoint, identity)
    set_seed(config.training.seed)
    model = apply_method(base, config.method, total_steps(config.training, work.steps_rows()))
    display.message(_headline(config, base, work, model))
    runs._write_config(output, config)
    metrics = MetricsFile(output / METRICS_FILE, resume_step=step_of(checkpoint) if checkpoint else None)
    stop = StopCallback()
    trainer = work.trainer(model, make_arguments(config, work.steps_rows()), [stop])
    trainer.identity = identity
    trainer.add_callback(RecordCallback(metrics, display, lambda: trainer.tokens_seen))
    seconds = runs._run(trainer, stop, display, checkpoint)
    plot_losses(read_metrics(output / METRICS_FILE), output / PLOT_FILE)
    if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
        return runs.RunResult(output, None, trainer.state.global_step, {}, stop.signal)
    results = _results(config, work, trainer, seconds)
    metrics.append({"step": trainer.state.global_step, **results})
    package = output / PACKAGE_DIR
    reference = DataRef(sha256=work.data.sha256, rows=len(work.data.train))
    export_adapter(trainer.trained, base, config, package, data=reference, metrics=results)
    return runs.RunResult(output, package, trainer.state.global_step, results)


def make_work(config: TrainConfig, preference: Preference, base: Base) -> Work:
    """The work that ``preference`` asks for, its data loaded and the reference's scores of it computed."""
    if isinstance(preference, DpoPreference):
        return DpoWork(config, preference, base)
    if isinstance(preference, KtoPreference):
        return KtoWork(config, preference, base)
    raise NotImplementedError


def _results(config: TrainConfig, work: Work, trainer: Any, seconds: float) -> dict[str, float]:
    history: list[dict[str, Any]] = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    results = {"train_loss": losses[-1]} if losses else {}
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    if validation:
        results["validation_loss"] = min(validation) if config.training.best_checkpoint else validation[-1]
    return results | {
        **work.figures(trainer),
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(trainer.tokens_seen / seconds, 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def _headline(config: TrainConfig, base: Base, work: Work, model: Any) -> str:
    assert config.preference is not None
    count = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    quantize = "" if config.training.quantize == "none" else f" {config.training.quantize}"
    return (
        f"{config.preference.KIND} of {config.method.KIND} on {base.name}{quantize} "
        f"({str(base.dtype).removeprefix('torch.')}): {count:,} trainable parameters, "
        f"{len(work.data.train)} rows to train, {len(work.data.validation)} to validate"
    )
