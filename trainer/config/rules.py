"""Rules between the keys of a configuration, which types alone cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config.data import DataConfig, absolute
from trainer.config.methods import FullMethod, Ia3Method, LoraMethod, PrefixMethod
from trainer.config.preference import DpoPreference, GrpoPreference, KtoPreference, Preference, RewardPreference
from trainer.config.schema import TrainConfig, TrainingConfig
from trainer.errors import ConfigError


def check_data(data: DataConfig) -> None:
    """Raise ConfigError, naming the key, for values that do not go together."""
    if not data.paths or not all(path.strip() for path in data.paths):
        raise ConfigError("data.path: give the file with the training data")
    validation = data.validation
    if isinstance(validation, float) and validation > 1 and not validation.is_integer():
        raise ConfigError(f"data.validation: {validation} is neither a share below 1 nor a whole number of rows")
    if data.template == "none":
        for column in ("messages", "history", "tools"):
            if getattr(data.columns, column):
                raise ConfigError(f"data.columns.{column}: conversations need data.template: chat")
        if data.columns.system or data.system_prompt:
            raise ConfigError("data.template: none has no place for a system prompt; put it into the prompt column")
        if data.shape in ("messages", "sharegpt"):
            raise ConfigError(f"data.shape: {data.shape} are conversations, which need data.template: chat")
    if data.columns.system and data.system_prompt:
        raise ConfigError("data.system_prompt: give it or data.columns.system, not both")
    if data.too_long == "split" and (data.shape not in ("auto", "text")):
        raise ConfigError(f"data.too_long: split is for the shape text; {data.shape} rows can be dropped or cut")
    if data.recipe and len(data.paths) > 1:
        raise ConfigError("data.path: a recipe reads one folder")


_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def check_preference(
    preference: Preference,
    method: Any,
    training: TrainingConfig,
    *,
    too_long: str,
    added_tokens: bool,
    starts_from: bool,
) -> None:
    """Raise ConfigError, naming the key, for values that do not go together."""
    kind = preference.KIND
    if training.exact_match_rows:
        raise ConfigError(f"training.exact_match_rows: {kind} has no responses to match; leave it out")
    if method.KIND == "adalora":
        raise ConfigError(f"method.type: adalora adds a term to the loss of supervised training; {kind} has none")
    if added_tokens and not (starts_from and kind in ("dpo", "kto")):
        raise ConfigError(
            f"added_tokens: the reference of {kind} is the base, which does not know them; leave them out"
            + ("" if kind not in ("dpo", "kto") else ", or name an adapter that does with start_from")
        )
    if starts_from and isinstance(preference, RewardPreference):
        raise ConfigError(
            "start_from: a reward model begins with the base; merge the adapter into one first (hotswap merge)"
        )
    if training.neftune_noise_alpha:
        raise ConfigError(f"training.neftune_noise_alpha: noise would blur what {kind} compares; leave it out")
    if too_long == "split":
        raise ConfigError(f"data.too_long: split is not for {kind}; choose drop, cut_start or cut_end")
    if getattr(preference, "disable_dropout", False) and getattr(method, "dropout", 0.0):
        raise ConfigError(
            f"method.dropout: {kind} trains without dropout; set it to 0, or preference.disable_dropout to false"
        )
    if isinstance(preference, DpoPreference):
        _check_smoothing(preference)
    elif isinstance(preference, KtoPreference) and preference.loss_type == "kto" and training.batch_size < 2:
        raise ConfigError("training.batch_size: kto compares the rows of a batch with each other; give at least 2")
    elif isinstance(preference, RewardPreference) and not isinstance(method, LoraMethod):
        raise ConfigError(f"method.type: reward models are trained with lora (dora, rslora), not with {method.KIND}")
    elif isinstance(preference, GrpoPreference):
        if preference.beta and starts_from:
            raise ConfigError("preference.beta: it would hold the model to the base, not to start_from; set it to 0")
        _check_grpo(preference, method, training)


def _check_smoothing(preference: DpoPreference) -> None:
    smoothed = preference.loss_type in _SMOOTHED
    if preference.label_smoothing and not smoothed:
        raise ConfigError(f"preference.label_smoothing: only for the losses {', '.join(_SMOOTHED)}")
    if preference.loss_type == "exo_pair" and not preference.label_smoothing:
        raise ConfigError("preference.label_smoothing: the loss exo_pair needs one above 0, for instance 1e-3")


def _check_grpo(preference: GrpoPreference, method: Any, training: TrainingConfig) -> None:
    if ":" not in preference.reward:
        raise ConfigError("preference.reward: write module:function or file.py:function")
    if isinstance(method, PrefixMethod) or method.KIND in ("prompt", "p_tuning"):
        raise ConfigError(f"method.type: grpo lets the model answer while it trains, which {method.KIND} cannot yet")
    if preference.beta and method.KIND in ("bottleneck", "freeze", "full"):
        raise ConfigError(f"preference.beta: {method.KIND} cannot be switched off to ask the base; set it to 0")
    if preference.beta and getattr(method, "bias", "none") != "none":
        raise ConfigError("method.bias: with preference.beta the base is asked too, whose biases must stay; set none")
    for key in ("best_checkpoint", "eval_steps", "early_stopping"):
        if getattr(training, key):
            raise ConfigError(f"training.{key}: grpo has no validation loss; held-out rewards are measured at the end")
    answers = training.batch_size * training.gradient_accumulation
    if answers % preference.num_generations:
        raise ConfigError(
            f"preference.num_generations: {preference.num_generations} does not divide the {answers} answers of a "
            "step (training.batch_size times gradient_accumulation)"
        )


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
            starts_from=bool(config.start_from),
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
