"""Rules between the keys of a configuration, which types alone cannot say."""

from __future__ import annotations

from pathlib import Path

from trainer.config.data import check_data
from trainer.config.methods import FullMethod, Ia3Method
from trainer.config.paths import absolute
from trainer.config.preference import check_preference
from trainer.config.schema import TrainConfig
from trainer.config.training import TrainingConfig
from trainer.errors import ConfigError

UNPACKABLE = ("prefix", "prompt", "p_tuning")  # kinds with virtual tokens


def check(config: TrainConfig) -> None:
    """Raise ConfigError, naming the key, for values that do not go together."""
    if not config.output.strip():
        raise ConfigError("output: give the directory that receives the run")
    check_data(config.data)
    _check_method(config)
    if config.preference:
        check_preference(
            config.preference,
            config.method,
            config.training,
            too_long=config.data.too_long,
            added_tokens=bool(config.added_tokens),
            starts=bool(config.start_from),
        )
    _check_start(config)
    _check_packing(config)
    _check_optimizer(config)
    _check_steps(config.training, has_validation=config.data.validation != 0)


def _check_method(config: TrainConfig) -> None:
    method = config.method
    if getattr(method, "target_modules", None) in ("", []):
        raise ConfigError("method.target_modules: name at least one module, or all-linear where the method allows it")
    if isinstance(method, Ia3Method) and (method.target_modules is None) != (method.feedforward_modules is None):
        raise ConfigError("method.feedforward_modules: give it together with target_modules, or neither")
    if config.training.quantize not in method.QUANTIZED:
        raise ConfigError(
            f"training.quantize: {method.KIND} works on the base's weights themselves, so it cannot be trained on "
            f"{config.training.quantize}; use {' or '.join(method.QUANTIZED)}"
        )


def _check_start(config: TrainConfig) -> None:
    if not config.start_from:
        return
    if isinstance(config.method, FullMethod):
        raise ConfigError(
            "start_from: full fine-tuning starts from a base: merge the adapter and give the result as base"
        )
    start, output = (Path(absolute(path)) for path in (config.start_from, config.output))
    if start.is_relative_to(output) or output.is_relative_to(start):
        raise ConfigError("start_from: it and output lie in each other, where this run writes; choose another output")


def _check_packing(config: TrainConfig) -> None:
    if config.training.packing and config.method.KIND in UNPACKABLE:
        raise ConfigError(
            f"training.packing: {config.method.KIND} stands before a whole row, not before every example packed into "
            "it, so it would learn something else; set it to false"
        )
    if config.training.packing and config.preference:
        raise ConfigError("training.packing: preference training compares whole rows; set it to false")


def _check_optimizer(config: TrainConfig) -> None:
    training = config.training
    if training.loraplus_lr_ratio and (config.method.KIND != "lora" or config.preference):
        raise ConfigError("training.loraplus_lr_ratio: LoRA+ is for the method lora, without preference")
    if training.label_smoothing and config.preference:
        raise ConfigError("training.label_smoothing: preference training has losses of its own; leave it out")
    if training.early_stopping_min_delta and not training.early_stopping:
        raise ConfigError("training.early_stopping_min_delta: say after how many evaluations with early_stopping")


def _check_steps(training: TrainingConfig, has_validation: bool) -> None:
    if training.warmup > 1 and not training.warmup.is_integer():
        raise ConfigError(f"training.warmup: {training.warmup} is neither a share below 1 nor a whole number of steps")
    if not has_validation:
        for key in ("best_checkpoint", "early_stopping", "eval_steps", "exact_match_rows"):
            if getattr(training, key):
                raise ConfigError(f"training.{key}: there are no validation rows (data.validation is 0)")
    every, save = training.eval_steps, training.save_steps
    keeps_best = "early_stopping" if training.early_stopping else "best_checkpoint" if training.best_checkpoint else ""
    if keeps_best and save and (not every or save % every):
        raise ConfigError(f"training.save_steps: with {keeps_best} it must be a multiple of training.eval_steps")
