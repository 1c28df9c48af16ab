"""Rules between the keys of a configuration, which types alone cannot say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config.data import CALL_ROLE, ROLES, DataConfig, absolute
from trainer.config.methods import FullMethod, Ia3Method, LoraMethod, PrefixMethod
from trainer.config.preference import DpoPreference, GrpoPreference, KtoPreference, Preference, RewardPreference
from trainer.config.schema import TrainConfig, TrainingConfig
from trainer.config.task import ClassificationTask, EmbeddingTask, ReadingTask, TokenClassificationTask


def _data_rules(data: DataConfig) -> Iterator[str]:
    if not data.paths or not all(path.strip() for path in data.paths):
        yield "data.path: give the file with the training data"
    validation = data.validation
    if isinstance(validation, float) and validation > 1 and not validation.is_integer():
        yield f"data.validation: {validation} is neither a share below 1 nor a whole number of rows"
    if data.template == "none":
        for column in ("messages", "history", "tools"):
            if getattr(data.columns, column):
                yield f"data.columns.{column}: conversations need data.template: chat"
        if data.columns.system or data.system_prompt:
            yield "data.template: none has no place for a system prompt; put it into the prompt column"
        if data.shape in ("messages", "sharegpt"):
            yield f"data.shape: {data.shape} are conversations, which need data.template: chat"
    if data.columns.system and data.system_prompt:
        yield "data.system_prompt: give it or data.columns.system, not both"
    if data.too_long == "split" and (data.shape not in ("auto", "text")):
        yield f"data.too_long: split is for the shape text; {data.shape} rows can be dropped or cut"
    for name, role in data.roles.items():
        if role not in (*ROLES, CALL_ROLE, name):
            yield (
                f"data.roles.{name}: {role!r} is no role; choose from {', '.join((*ROLES, CALL_ROLE))}, "
                f"or {name} itself where the template knows it"
            )
    if data.recipe and len(data.paths) > 1:
        yield "data.path: a recipe reads one folder"


def _preference_data_rules(preference: Preference, data: DataConfig) -> Iterator[str]:
    """For columns that no row of this training has."""
    kind = preference.KIND
    where = {"dpo": "chosen and rejected", "reward": "chosen and rejected", "kto": "completion and label"}.get(kind)
    answers = f"its answers are in preference.columns.{where}" if where else "its answers are the model's own"
    for column in ("response", "text"):
        if getattr(data.columns, column):
            yield f"data.columns.{column}: {kind} does not read it; {answers}"
    for column in ("prompt", "input"):
        if getattr(data.columns, column) and data.columns.messages:
            yield f"data.columns: {column} and messages do not go together"
    if data.shape == "text":
        yield f"data.shape: {kind} has prompts and answers, and rows of the shape text have neither"
    if isinstance(preference, (DpoPreference, RewardPreference)):
        for column in ("completion", "label"):
            if getattr(preference.columns, column) != column:
                yield f"preference.columns.{column}: {kind} does not read it; {answers}"


_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def _preference_rules(
    preference: Preference,
    method: Any,
    training: TrainingConfig,
    *,
    too_long: str,
    added_tokens: bool,
    starts_from: bool,
) -> Iterator[str]:
    kind = preference.KIND
    answered = [key for key in ("exact_match_rows", "generate_rows") if getattr(training, key)]
    yield from (f"training.{key}: {kind} has no responses to match; leave it out" for key in answered)
    if method.KIND == "adalora":
        yield f"method.type: adalora adds a term to the loss of supervised training; {kind} has none"
    if added_tokens and not (starts_from and kind in ("dpo", "kto")):
        yield (
            f"added_tokens: the reference of {kind} is the base, which does not know them; leave them out"
            + ("" if kind not in ("dpo", "kto") else ", or name an adapter that does with start_from")
        )
    if starts_from and isinstance(preference, RewardPreference):
        yield "start_from: a reward model begins with the base; merge the adapter into one first (hotswap merge)"
    if training.neftune_noise_alpha:
        yield f"training.neftune_noise_alpha: noise would blur what {kind} compares; leave it out"
    if too_long == "split":
        yield f"data.too_long: split is not for {kind}; choose drop, cut_start or cut_end"
    if getattr(preference, "disable_dropout", False) and getattr(method, "dropout", 0.0):
        yield f"method.dropout: {kind} trains without dropout; set it to 0, or preference.disable_dropout to false"
    if isinstance(preference, DpoPreference):
        yield from _smoothing_rules(preference)
    elif isinstance(preference, KtoPreference) and preference.loss_type == "kto" and training.batch_size < 2:
        yield "training.batch_size: kto compares the rows of a batch with each other; give at least 2"
    elif isinstance(preference, RewardPreference) and not isinstance(method, LoraMethod):
        yield f"method.type: reward models are trained with lora (dora, rslora), not with {method.KIND}"
    elif isinstance(preference, GrpoPreference):
        if preference.beta and starts_from:
            yield "preference.beta: it would hold the model to the base, not to start_from; set it to 0"
        yield from _grpo_rules(preference, method, training)


def _smoothing_rules(preference: DpoPreference) -> Iterator[str]:
    smoothed = preference.loss_type in _SMOOTHED
    if preference.label_smoothing and not smoothed:
        yield f"preference.label_smoothing: only for the losses {', '.join(_SMOOTHED)}"
    if preference.loss_type == "exo_pair" and not preference.label_smoothing:
        yield "preference.label_smoothing: the loss exo_pair needs one above 0, for instance 1e-3"


def _grpo_rules(preference: GrpoPreference, method: Any, training: TrainingConfig) -> Iterator[str]:
    if ":" not in preference.reward:
        yield "preference.reward: write module:function or file.py:function"
    if isinstance(method, PrefixMethod) or method.KIND in ("prompt", "p_tuning"):
        yield f"method.type: grpo lets the model answer while it trains, which {method.KIND} cannot yet"
    if preference.beta and method.KIND in ("bottleneck", "freeze", "full"):
        yield f"preference.beta: {method.KIND} cannot be switched off to ask the base; set it to 0"
    if preference.beta and getattr(method, "bias", "none") != "none":
        yield "method.bias: with preference.beta the base is asked too, whose biases must stay; set none"
    for key in ("best_checkpoint", "eval_steps", "early_stopping"):
        if getattr(training, key):
            yield f"training.{key}: grpo has no validation loss; held-out rewards are measured at the end"
    answers = training.batch_size * training.gradient_accumulation
    if answers % preference.num_generations:
        yield (
            f"preference.num_generations: {preference.num_generations} does not divide the {answers} answers of a "
            "step (training.batch_size times gradient_accumulation)"
        )


def _task_rules(config: TrainConfig, task: ReadingTask) -> Iterator[str]:
    kind, data, training = task.KIND, config.data, config.training
    yield from _task_data_rules(kind, data)
    if config.preference:
        yield f"task: {kind} has no answers to compare; leave out task or preference"
    if isinstance(config.method, FullMethod):
        yield f"method.type: {kind} trains an adapter with a head of its own beside the base; choose another than full"
    if config.added_tokens:
        yield f"added_tokens: {kind} reads with the base's own vocabulary; leave them out"
    for key in ("exact_match_rows", "generate_rows"):
        if getattr(training, key):
            yield f"training.{key}: {kind} has no responses to match; leave it out"
    if training.packing is True:
        yield f"training.packing: {kind} reads whole rows, each by itself; set it to false"
    one_of = isinstance(task, TokenClassificationTask) or (
        isinstance(task, ClassificationTask) and not task.multi_label
    )
    if training.label_smoothing and not one_of:
        yield "training.label_smoothing: only for classes of which a text has one; leave it out"
    if isinstance(task, EmbeddingTask) and training.batch_size < 2:
        yield "training.batch_size: embedding compares the rows of a batch with each other; give at least 2"
    if isinstance(task, ClassificationTask) and task.labels is not None and len(set(task.labels)) < 2:
        yield "task.labels: name at least two labels, each once"
    if isinstance(task, TokenClassificationTask) and data.columns.messages:
        yield f"data.columns.messages: {kind} reads texts; name words in task.columns.words, or data.columns.text"


def _task_data_rules(kind: str, data: DataConfig) -> Iterator[str]:
    """For keys under ``data`` that only answers have."""
    if data.too_long == "split":
        yield f"data.too_long: split is not for {kind}; choose drop, cut_start or cut_end"
    if data.learn != "all_answers":
        yield f"data.learn: {kind} learns no words of the rows; leave it out"
    if data.shape not in ("auto", "text"):
        yield f"data.shape: {kind} finds texts by the names of their columns; leave it out"
    for key in ("max_prompt_length", "max_response_length"):
        if getattr(data, key):
            yield f"data.{key}: {kind} has texts, which data.max_length limits; leave it out"
    for column in ("response", "input", "system", "history", "tools"):
        if getattr(data.columns, column):
            yield f"data.columns.{column}: {kind} does not read it; what is wanted of a text is in task.columns"


UNPACKABLE = ("prefix", "prompt", "p_tuning")  # kinds with virtual tokens


def broken_rules(config: TrainConfig) -> Iterator[str]:
    """What to say of values that do not go together, each naming its key. Raises ConfigError for a path of nobody's."""
    if not config.output.strip():
        yield "output: give the directory that receives the run"
    yield from _data_rules(config.data)
    yield from _method_rules(config)
    if config.preference:
        yield from _preference_data_rules(config.preference, config.data)
        yield from _preference_rules(
            config.preference,
            config.method,
            config.training,
            too_long=config.data.too_long,
            added_tokens=bool(config.added_tokens),
            starts_from=bool(config.start_from),
        )
    if config.reading:
        yield from _task_rules(config, config.reading)
    yield from _start_rules(config)
    yield from _packing_rules(config)
    yield from _optimizer_rules(config)
    yield from _step_rules(config.training, has_validation=config.data.validation != 0)


def _method_rules(config: TrainConfig) -> Iterator[str]:
    method = config.method
    if getattr(method, "target_modules", None) in ("", []):
        yield "method.target_modules: name at least one module, or all-linear where the method allows it"
    if isinstance(method, Ia3Method) and (method.target_modules is None) != (method.feedforward_modules is None):
        yield "method.feedforward_modules: give it together with target_modules, or neither"
    if config.training.quantize not in method.QUANTIZED:
        yield (
            f"training.quantize: {method.KIND} works on the base's weights themselves, so it cannot be trained on "
            f"{config.training.quantize}; use {' or '.join(method.QUANTIZED)}"
        )


def _start_rules(config: TrainConfig) -> Iterator[str]:
    if not config.start_from:
        return
    if isinstance(config.method, FullMethod):
        yield "start_from: full fine-tuning starts from a base: merge the adapter and give the result as base"
    start, output = (Path(absolute(path)) for path in (config.start_from, config.output))
    if start.is_relative_to(output) or output.is_relative_to(start):
        yield "start_from: it and output lie in each other, where this run writes; choose another output"


def _packing_rules(config: TrainConfig) -> Iterator[str]:
    if config.training.packing is True and config.method.KIND in UNPACKABLE:
        yield (
            f"training.packing: {config.method.KIND} stands before a whole row, not before every example packed into "
            "it, so it would learn something else; set it to false"
        )
    if config.training.packing is True and config.preference:
        yield "training.packing: preference training compares whole rows; set it to false"


def _optimizer_rules(config: TrainConfig) -> Iterator[str]:
    training = config.training
    if training.loraplus_lr_ratio and (config.method.KIND != "lora" or config.preference):
        yield "training.loraplus_lr_ratio: LoRA+ is for the method lora, without preference"
    if training.label_smoothing and config.preference:
        yield "training.label_smoothing: preference training has losses of its own; leave it out"
    if training.early_stopping_min_delta and not training.early_stopping:
        yield "training.early_stopping_min_delta: say after how many evaluations with early_stopping"


def _step_rules(training: TrainingConfig, has_validation: bool) -> Iterator[str]:
    if training.warmup > 1 and not training.warmup.is_integer():
        yield f"training.warmup: {training.warmup} is neither a share below 1 nor a whole number of steps"
    if not has_validation:
        for key in (
            "best_checkpoint",
            "early_stopping",
            "eval_steps",
            "eval_at_start",
            "exact_match_rows",
            "generate_rows",
        ):
            if getattr(training, key) not in (None, False, 0, "no"):
                yield f"training.{key}: there are no validation rows (data.validation is 0)"
    for key in ("eval_steps", "save_steps"):
        if isinstance(value := getattr(training, key), str) and not EPOCHS.fullmatch(value) and value != "no":
            yield f"training.{key}: {value!r} is neither a number of steps nor epoch, epoch/4 (four times one) or no"
    keeps_best = "early_stopping" if training.early_stopping else "best_checkpoint" if training.best_checkpoint else ""
    if keeps_best:
        yield from _best_rules(training, keeps_best)


EPOCHS = re.compile(r"epoch(?:/([1-9]\d*))?")


def _best_rules(training: TrainingConfig, keeps_best: str) -> Iterator[str]:
    """The best checkpoint is one of those that were evaluated."""
    every, save = training.eval_steps, training.save_steps
    for key, value in (("eval_steps", every), ("save_steps", save)):
        if value == "no":
            yield f"training.{key}: {keeps_best} needs evaluations and checkpoints; it cannot be no"
    if "no" in (every, save) or save is None or save == every:
        return
    counts = [EPOCHS.fullmatch(str(value)) for value in (every, save)]
    if counts[0] and counts[1]:
        often, seldom = (int(count[1] or 1) for count in counts if count)
        fits = often % seldom == 0
    else:
        fits = isinstance(every, int) and isinstance(save, int) and save % every == 0
    if not fits:
        yield f"training.save_steps: with {keeps_best} it must be a multiple of training.eval_steps"
