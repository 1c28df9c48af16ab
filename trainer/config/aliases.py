"""Names of settings in other trainers, what they are here, and how their values become ours.

A table, and nothing that reads files or flags. A name takes over the value that was given, not the defaults of the tool
it comes from; where the value alone would mean something else here, ``with_it`` says what goes with it. A conversion
raises ValueError, saying what to do instead. docs/training/aliases.md is made from this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET

from trainer.config.unsupported_options import (
    ALL,
    AXOLOTL,
    FACTORY,
    GLM,
    GLM_HF,
    HF,
    OPTIONS_WITHOUT_EFFECT,
    SWITCHES_WITHOUT_EFFECT,
    TRL,
    TUNE,
    UNSUPPORTED_OPTIONS,
    UNSUPPORTED_SWITCHES,
)

NOT_GIVEN = UNSET  # the value says nothing, as if the setting were absent


class Several(dict[str, Any]):
    """A value that means several of our keys."""


@dataclass(frozen=True)
class Conversion:
    """``apply`` makes our value of a given one; ``words`` tell it in the documentation."""

    apply: Callable[[Any], Any]
    words: str = ""


def choice(values: Mapping[str, Any], words: str | None = None) -> Conversion:
    """One of the spellings in ``values``; numbers and booleans are compared as they are written in YAML."""

    def apply(value: Any) -> Any:
        text = _text(value)
        if text not in values:
            raise ValueError(f"{text!r} has no counterpart here; known are {', '.join(values)}")
        return values[text]

    given = [(theirs, ours) for theirs, ours in values.items() if ours is not NOT_GIVEN]
    said = (theirs if theirs == ours else f"{theirs}: {_text(ours)}" for theirs, ours in given)
    return Conversion(apply, ", ".join(said) if words is None else words)


def when_true(ours: Any) -> Conversion:
    """True means ``ours``, false nothing."""
    words = f"true: {ours}"
    return choice({"true": ours, "false": NOT_GIVEN}, words)


def only(accepted: Sequence[str], instead: str) -> Conversion:
    """Values in ``accepted`` are what happens anyway; all others are refused with ``instead``."""

    def apply(value: Any) -> Any:
        if _text(value) not in accepted:
            raise ValueError(instead)
        return NOT_GIVEN

    return Conversion(apply, f"{' or '.join(accepted)}; else refused: {instead}" if accepted else f"refused: {instead}")


def without_effect(why: str) -> Conversion:
    """Accepted, and nothing changes."""
    return Conversion(lambda _: NOT_GIVEN, f"no effect: {why}")


def _names(value: Any) -> Any:
    if value in ("all", "all-linear"):
        return "all-linear"
    return _list(value) if isinstance(value, str) and re.fullmatch(r"[\w.]+(\s*,\s*[\w.]+)*", value) else value


def _list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _layer_paths(value: Any) -> Any:
    return [f"model.{name.strip('.').removeprefix('model.')}" for name in _list(value)]


def _count(value: Any) -> Any:
    return NOT_GIVEN if value in (0, -1) else value


AS_IS = Conversion(lambda value: value)
NAMES = Conversion(_names, "names with commas become a list; all: all-linear")
LIST = Conversion(_list, "names with commas become a list")
LAYER_PATHS = Conversion(_layer_paths, "layers.27.,layers.26.: [model.layers.27, model.layers.26]")
COUNT = Conversion(_count, "0 and -1: not given")
TEMPLATE = Conversion(lambda value: "chat" if value == "tokenizer_default" else value, "tokenizer_default: chat")
ADAPTER = choice(
    {"lora": "lora", "qlora": Several({"method": "lora", "training.quantize": "nf4"})}, "qlora: lora on an nf4 base"
)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Alias:
    """One name of ``tools`` for our key ``ours`` (empty where there is no counterpart).

    ``method`` is the training method that the name belongs to, chosen by it where none is named. ``with_it`` are values
    of other keys that hold unless they are given. A switch needs no value as a flag.
    """

    name: str
    tools: str
    ours: str
    conversion: Conversion = AS_IS
    method: str | None = None
    with_it: Mapping[str, Any] = field(default_factory=dict)
    is_switch: bool = False


_METHODS = {"lora": "lora", "freeze": "freeze", "full": "full", "oft": "oft"}
_SCHEDULERS = {
    **{name: name for name in ("linear", "cosine", "constant", "cosine_with_restarts", "polynomial", "inverse_sqrt")},
    "constant_with_warmup": "constant",
}
_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    "adamw_bnb_8bit": "adamw_8bit",
    **{name: name for name in ("adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "sgd")},
    "lion_32bit": "lion",
}
_DTYPE = {"true": "bfloat16", "auto": "auto", "false": NOT_GIVEN}
_DTYPES = {"auto": "auto", "bfloat16": "bfloat16", "float32": "float32"}
_CUT = {"data.too_long": "cut_end"}
_PLAIN = {"method.projection": False}
_PREFERENCES = {"dpo": "dpo", "kto": "kto"}
_COMPLETION_ONLY = {"true": "all_answers", "false": "everything"}
_MODEL_AND_METHOD = (
    Alias("model_name_or_path", GLM_HF, "base"),
    Alias("base_model", AXOLOTL, "base"),
    Alias("torch_dtype", f"{TRL}, transformers", "training.dtype", choice(_DTYPES)),
    Alias("quantization_bit", f"{GLM}, {FACTORY}", "training.quantize", choice({"4": "nf4", "8": "int8"})),
    Alias("load_in_4bit", f"{AXOLOTL}, {TRL}", "training.quantize", when_true("nf4"), is_switch=True),
    Alias("load_in_8bit", f"{AXOLOTL}, {TRL}", "training.quantize", when_true("int8"), is_switch=True),
    Alias("bf16", ALL, "training.dtype", choice(_DTYPE), is_switch=True),
    Alias("add_tokens", FACTORY, "added_tokens", LIST),
    Alias("new_special_tokens", FACTORY, "added_tokens", LIST),
    Alias("adapter_name_or_path", FACTORY, "start_from"),
    Alias("lora_model_dir", AXOLOTL, "start_from"),
    Alias("finetuning_type", FACTORY, "method", choice(_METHODS)),
    Alias("train_type", TUNE, "method", choice({**_METHODS, "ptuning": "prefix", "all": "full"})),
    Alias("adapter", AXOLOTL, "method", ADAPTER),
    Alias("use_peft", TRL, "method", when_true("lora"), is_switch=True),
    Alias("pre_seq_len", f"{GLM}, {TUNE}", "method.tokens", method="prefix", with_it=_PLAIN),
    Alias("prefix_projection", f"{GLM}, {TUNE}", "method.projection", method="prefix", is_switch=True),
    Alias("lora_r", f"{TRL}, {AXOLOTL}", "method.r", method="lora"),
    Alias("lora_rank", FACTORY, "method.r", method="lora"),
    Alias("lora_dim", TUNE, "method.r", method="lora"),
    Alias("lora_alpha", f"{FACTORY}, {AXOLOTL}, {TRL}, {TUNE}", "method.alpha", method="lora"),
    Alias("lora_dropout", f"{FACTORY}, {AXOLOTL}, {TRL}, {TUNE}", "method.dropout", method="lora"),
    Alias("lora_target", FACTORY, "method.target_modules", NAMES, method="lora"),
    Alias("lora_target_modules", f"{AXOLOTL}, {TRL}", "method.target_modules", NAMES, method="lora"),
    Alias("lora_module_name", TUNE, "method.target_modules", NAMES, method="lora"),
    Alias("lora_target_linear", AXOLOTL, "method.target_modules", when_true("all-linear"), "lora", is_switch=True),
    Alias("target_modules", "peft", "method.target_modules", NAMES),
    Alias("num_virtual_tokens", "peft", "method.tokens"),
    Alias("peft_use_dora", AXOLOTL, "method.use_dora", method="lora", is_switch=True),
    Alias("peft_use_rslora", AXOLOTL, "method.use_rslora", method="lora", is_switch=True),
    Alias("lora_use_dora", TRL, "method.use_dora", method="lora", is_switch=True),
    Alias("additional_target", FACTORY, "method.modules_to_save", LIST, method="lora"),
    Alias("lora_modules_to_save", f"{AXOLOTL}, {TRL}", "method.modules_to_save", LIST, method="lora"),
    Alias("freeze_trainable_layers", FACTORY, "method.layers", method="freeze"),
    Alias("freeze_extra_modules", FACTORY, "method.modules", LIST, method="freeze"),
    Alias("freeze_module_name", TUNE, "method.modules", LAYER_PATHS, method="freeze", with_it={"method.layers": 0}),
)
_DATA = (
    Alias("train_file", GLM, "data.path"),
    Alias("train_path", TUNE, "data.path"),
    Alias("dataset_name", TRL, "data.path"),
    Alias("validation_file", GLM, "data.validation"),
    Alias("test_path", TUNE, "data.validation"),
    Alias("val_size", FACTORY, "data.validation"),
    Alias("val_set_size", AXOLOTL, "data.validation"),
    Alias("prompt_column", GLM, "data.columns.prompt"),
    Alias("response_column", GLM, "data.columns.response"),
    Alias("test_file", GLM, "data.test"),
    Alias("history_column", GLM, "data.columns.history"),
    Alias("source_prefix", GLM, "data.prompt_prefix"),
    Alias("max_samples", FACTORY, "data.max_rows"),
    Alias("max_train_samples", GLM, "data.max_rows"),
    Alias("max_source_length", GLM, "data.max_prompt_length"),
    Alias("max_target_length", GLM, "data.max_response_length"),
    Alias("max_src_len", TUNE, "data.max_prompt_length"),
    Alias("is_skip", TUNE, "data.too_long", when_true("drop"), is_switch=True),
    Alias("train_on_prompt", FACTORY, "data.learn", when_true("everything"), is_switch=True),
    Alias("train_on_inputs", AXOLOTL, "data.learn", when_true("everything"), is_switch=True),
    Alias("mask_history", FACTORY, "data.learn", when_true("last_answer"), is_switch=True),
    Alias("completion_only_loss", TRL, "data.learn", choice(_COMPLETION_ONLY), is_switch=True),
    Alias("assistant_only_loss", TRL, "data.learn", when_true("all_answers"), is_switch=True),
    Alias("cutoff_len", FACTORY, "data.max_length", with_it=_CUT),
    Alias("max_seq_length", TRL, "data.max_length", with_it=_CUT),
    Alias("max_len", TUNE, "data.max_length", with_it=_CUT),
    Alias("sequence_len", AXOLOTL, "data.max_length"),
    Alias("chat_template", AXOLOTL, "data.template", TEMPLATE),
    Alias("dataset_train_split", TRL, "data.split"),
    Alias("default_system", FACTORY, "data.system_prompt"),
    Alias("default_system_message", AXOLOTL, "data.system_prompt"),
)
_LOOP = (
    Alias("sample_packing", AXOLOTL, "training.packing", is_switch=True),
    Alias("neat_packing", FACTORY, "training.packing", is_switch=True),
    Alias("output_dir", ALL, "output"),
    Alias("num_train_epochs", GLM_HF, "training.epochs"),
    Alias("num_epochs", AXOLOTL, "training.epochs"),
    Alias("max_steps", GLM_HF, "training.max_steps", COUNT),
    Alias("per_device_train_batch_size", GLM_HF, "training.batch_size"),
    Alias("micro_batch_size", AXOLOTL, "training.batch_size"),
    Alias("gradient_accumulation_steps", f"{GLM_HF}, {AXOLOTL}", "training.gradient_accumulation"),
    Alias("lr_scheduler_type", GLM_HF, "training.scheduler", choice(_SCHEDULERS)),
    Alias("lr_scheduler", AXOLOTL, "training.scheduler", choice(_SCHEDULERS)),
    Alias("warmup_ratio", ALL, "training.warmup", COUNT),
    Alias("warmup_steps", ALL, "training.warmup", COUNT),
    Alias("optim", GLM_HF, "training.optimizer", choice(_OPTIMIZERS)),
    Alias("optimizer", AXOLOTL, "training.optimizer", choice({**_OPTIMIZERS, "adamw": "adamw", "lion": "lion"})),
    Alias("label_smoothing_factor", GLM_HF, "training.label_smoothing"),
    Alias("logging_steps", GLM_HF, "training.log_steps"),
    Alias("show_loss_step", TUNE, "training.log_steps"),
    Alias("save_total_limit", ALL, "training.keep_checkpoints"),
    Alias("load_best_model_at_end", ALL, "training.best_checkpoint", is_switch=True),
    Alias("early_stopping_patience", AXOLOTL, "training.early_stopping"),
    Alias("report_to", HF, "training.tensorboard", choice({"none": NOT_GIVEN, "tensorboard": True})),
    Alias("stage", FACTORY, "preference.type", choice({"sft": NOT_GIVEN, **_PREFERENCES, "rm": "reward"})),
    Alias("rl", AXOLOTL, "preference.type", choice(_PREFERENCES)),
    Alias("pref_beta", FACTORY, "preference.beta"),
    Alias("pref_loss", FACTORY, "preference.loss_type"),
    Alias("pref_ftx", FACTORY, "preference.rpo_alpha"),
    Alias("kto_chosen_weight", FACTORY, "preference.desirable_weight"),
    Alias("kto_rejected_weight", FACTORY, "preference.undesirable_weight"),
    Alias("reward_funcs", TRL, "preference.reward"),
    Alias("save_model_step", TUNE, "training.save_steps"),
)
# Names of other tools that are ours too, and mean the same.
SAME_NAMES = (
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "save_steps",
    "eval_steps",
    "gradient_checkpointing",
    "seed",
    "max_length",
    "packing",
    "neftune_noise_alpha",
    "loraplus_lr_ratio",
    "use_rslora",
    "use_dora",
)
ALIASES: dict[str, Alias] = {
    alias.name: alias
    for alias in (
        *_MODEL_AND_METHOD,
        *_DATA,
        *_LOOP,
        *(
            Alias(name, "several", "", without_effect(why), is_switch=name in SWITCHES_WITHOUT_EFFECT)
            for name, why in OPTIONS_WITHOUT_EFFECT.items()
        ),
        *(
            Alias(name, tools, "", only(accepted, instead), is_switch=name in UNSUPPORTED_SWITCHES)
            for name, (tools, accepted, instead) in UNSUPPORTED_OPTIONS.items()
        ),
    )
}
