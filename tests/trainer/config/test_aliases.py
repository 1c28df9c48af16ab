"""Other trainers' names for settings: what they set, what they refuse, and that the documentation says the same."""

from __future__ import annotations

import argparse
import logging
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from trainer.commands.common import parse_settings
from trainer.config.aliases import ALIASES, ELSEWHERE, SAME_NAMES
from trainer.config.keys import full_key
from trainer.config.loading import dump_config, load_config
from trainer.config.methods import METHODS, FreezeMethod, LoraMethod, PrefixMethod
from trainer.config.preference import PREFERENCES, DpoPreference
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError

DOC = Path(__file__).parents[3] / "docs" / "training" / "aliases.md"
BASICS = ("output=out", "data.path=rows.jsonl")


def load(*overrides: str) -> TrainConfig:
    return load_config(None, [*BASICS, *overrides], {})


def from_yaml(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides, {})


def value_of(config: TrainConfig, key: str) -> Any:
    place: Any = msgspec.to_builtins(config)
    for part in key.split("."):
        place = place[part]
    return place


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("pre_seq_len=128", "method.tokens", 128),
        ("lora_rank=16", "method.r", 16),
        ("lora_r=4", "method.r", 4),
        ("lora_alpha=32", "method.alpha", 32.0),
        ("lora_dropout=0.1", "method.dropout", 0.1),
        ("lora_target=q_proj,v_proj", "method.target_modules", ["q_proj", "v_proj"]),
        ("lora_target=all", "method.target_modules", "all-linear"),
        ("lora_target_linear=true", "method.target_modules", "all-linear"),
        ("lora_module_name=query_key_value", "method.target_modules", ["query_key_value"]),
        ("target_modules=q_proj,v_proj", "method.target_modules", ["q_proj", "v_proj"]),
        ("target_modules=all-linear", "method.target_modules", "all-linear"),
        ("target_modules=.*_proj", "method.target_modules", ".*_proj"),
        ("freeze_trainable_layers=2", "method.layers", 2),
        ("freeze_module_name=layers.27.,layers.26.", "method.modules", ["layers.27", "layers.26"]),
        ("quantization_bit=4", "training.quantize", "nf4"),
        ("quantization_bit=8", "training.quantize", "int8"),
        ("load_in_4bit=true", "training.quantize", "nf4"),
        ("load_in_8bit=false", "training.quantize", "none"),
        ("bf16=true", "training.dtype", "bfloat16"),
        ("bf16=auto", "training.dtype", "auto"),
        ("fp16=false", "training.dtype", "auto"),
        ("fp16=true", "training.dtype", "float16"),
        ("model_name_or_path=org/model", "base", "org/model"),
        ("prompt_column=content", "data.columns.prompt", "content"),
        ("response_column=summary", "data.columns.response", "summary"),
        ("val_size=0.2", "data.validation", 0.2),
        ("val_size=50", "data.validation", 50.0),
        ("cutoff_len=512", "data.max_length", 512),
        ("per_device_train_batch_size=2", "training.batch_size", 2),
        ("micro_batch_size=3", "training.batch_size", 3),
        ("gradient_accumulation_steps=16", "training.gradient_accumulation", 16),
        ("num_train_epochs=2", "training.epochs", 2.0),
        ("num_epochs=2", "training.epochs", 2.0),
        ("max_steps=-1", "training.max_steps", None),
        ("max_steps=5", "training.max_steps", 5),
        ("warmup_ratio=0.1", "training.warmup", 0.1),
        ("warmup_steps=20", "training.warmup", 20.0),
        ("lr_scheduler_type=constant_with_warmup", "training.scheduler", "constant"),
        ("logging_steps=10", "training.log_steps", 10),
        ("save_total_limit=1", "training.keep_checkpoints", 1),
        ("load_best_model_at_end=true", "training.best_checkpoint", True),
        ("do_train=true", "training.epochs", 3.0),
        ("do_train=1", "training.epochs", 3.0),
        ("fp16=no", "training.dtype", "auto"),
        ("fp16=0", "training.dtype", "auto"),
        ("bf16=1", "training.dtype", "bfloat16"),
        ("bf16=yes", "training.dtype", "bfloat16"),
        ("bf16=off", "training.dtype", "auto"),
        ("load_in_4bit=True", "training.quantize", "nf4"),
        ("load_in_4bit=0", "training.quantize", "none"),
        ("sample_packing=1", "training.packing", True),
        ("gradient_checkpointing=1", "training.gradient_checkpointing", True),
        ("double_quantization=no", "training.quantize", "none"),
        ("push_to_hub=off", "training.epochs", 3.0),
        ("overwrite_output_dir=true", "training.epochs", 3.0),
        ("stage=sft", "preference", None),
        ("stage=dpo", "preference.type", "dpo"),
        ("--output-dir=elsewhere", "output", str(Path("elsewhere").absolute())),
    ],
)
def test_a_name_of_another_tool_sets_ours(given: str, key: str, value: Any) -> None:
    basics = BASICS[1:] if key == "output" else BASICS
    assert value_of(load_config(None, [*basics, given], {}), key) == value


def test_names_choose_the_method_they_belong_to(tmp_path: Path) -> None:
    assert load("pre_seq_len=8").method == PrefixMethod(tokens=8, projection=False)
    assert load("pre_seq_len=8", "prefix_projection=true").method == PrefixMethod(tokens=8, projection=True)
    assert load("finetuning_type=freeze", "freeze_trainable_layers=3").method == FreezeMethod(layers=3)
    assert load("train_type=ptuning", "pre_seq_len=8").method == PrefixMethod(tokens=8, projection=False)
    qlora = load("adapter=qlora", "lora_r=4", "load_in_4bit=true")
    assert (qlora.method, qlora.training.quantize) == (LoraMethod(r=4), "nf4")
    file = "output: out\ndata: rows.jsonl\npre_seq_len: 8\n"
    assert from_yaml(tmp_path, file, "prefix_projection=true").method == PrefixMethod(tokens=8, projection=True)
    assert from_yaml(tmp_path, file, "method=lora", "lora_r=2").method == LoraMethod(r=2)


def test_a_file_of_another_tool_may_be_flat(tmp_path: Path) -> None:
    text = (
        "model_name_or_path: org/model\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_target: all\n"
        "lora_rank: 8\ncutoff_len: 256\noutput_dir: out\nlogging_steps: 10\nlearning_rate: 1.0e-4\n"
        "num_train_epochs: 3.0\nlr_scheduler_type: cosine\nwarmup_ratio: 0.1\nbf16: true\nval_size: 0.1\n"
        "per_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nresume_from_checkpoint: null\n"
        "data: {path: rows.jsonl}\n"
    )
    config = from_yaml(tmp_path, text)
    assert config.method == LoraMethod(r=8, target_modules="all-linear")
    assert (config.data.max_length, config.data.too_long) == (256, "cut_end")
    training = config.training
    assert (training.learning_rate, training.scheduler, training.warmup) == (1e-4, "cosine", 0.1)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again, (), {}) == config


def test_names_may_stand_inside_a_section_and_are_overridden_by_the_command_line(tmp_path: Path) -> None:
    text = "output: out\ndata: rows.jsonl\ntraining: {num_train_epochs: 2, logging_steps: 3}\n"
    training = from_yaml(tmp_path, text, "epochs=5").training
    assert (training.epochs, training.log_steps) == (5.0, 3)


def test_the_command_line_of_the_chatglm_script_is_understood() -> None:
    line = (
        "--do_train --train_file train.json --validation_file dev.json"
        " --prompt_column content --response_column summary"
        " --overwrite_cache --model_name_or_path org/model --output_dir out --max_source_length 64"
        " --max_target_length 32 --per_device_train_batch_size 1 --per_device_eval_batch_size 1"
        " --gradient_accumulation_steps 16 --predict_with_generate --max_steps 3000 --logging_steps 10"
        " --save_steps 1000 --learning_rate 2e-2 --pre_seq_len 128 --quantization_bit 4"
    )
    config = from_command_line(line)
    assert config.method == PrefixMethod(tokens=128, projection=False)
    data, training = config.data, config.training
    assert (data.columns.prompt, data.columns.response) == ("content", "summary")
    assert (data.max_prompt_length, data.max_response_length) == (64, 32)
    assert data.validation == str(Path("dev.json").absolute())
    assert (training.batch_size, training.gradient_accumulation, training.max_steps) == (1, 16, 3000)
    assert (training.learning_rate, training.quantize, training.save_steps) == (2e-2, "nf4", 1000)
    assert training.generate_rows == 32


def test_the_command_line_of_trl_is_understood() -> None:
    line = (
        "--model_name_or_path org/model --dataset_name rows.jsonl --output_dir out --learning_rate 2.0e-4 --packing"
        " --num_train_epochs 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --gradient_checkpointing"
        " --eval_strategy steps --eval_steps 100 --save_steps 200 --use_peft --lora_r 32 --lora_alpha 16"
        " --lora_target_modules q_proj v_proj --load_in_4bit --max_length 512 --report_to tensorboard"
    )
    config = from_command_line(line)
    assert config.method == LoraMethod(r=32, alpha=16.0, target_modules=["q_proj", "v_proj"])
    assert (config.data.path, config.data.max_length) == (str(Path("rows.jsonl").absolute()), 512)
    training = config.training
    assert (training.packing, training.gradient_checkpointing, training.tensorboard) == (True, True, True)
    assert (training.quantize, training.eval_steps) == ("nf4", 100)


def from_command_line(line: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?")
    args, settings = parse_settings(parser, line.split())
    assert args.config is None
    return load_config(None, settings, {})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["epochs=1", "num_train_epochs=2"], "epochs says training.epochs: 1, but num_train_epochs says 2"),
        (["lora_r=1", "lora_rank=2"], "give one of them"),
        (["method=lora", "finetuning_type=freeze"], "method says method.type: lora, but finetuning_type says freeze"),
        (["method=lora", "pre_seq_len=8"], "pre_seq_len belongs to the method prefix, but the method is lora"),
        (["pre_seq_len=8", "lora_r=8"], "lora_r belongs to the method lora, but the method is prefix"),
        (["quantization_bit=3"], "quantization_bit: '3' has no counterpart here; known are 4, 8"),
        (["quantization_bit=4", "load_in_8bit=true"], "training.quantize: nf4, but load_in_8bit says int8"),
        (["push_to_hub=me/name"], "push_to_hub: hotswap publish"),
        (["load_in_4bit=maybe"], "load_in_4bit: 'maybe' has no counterpart here; known are true, false"),
        (["packing=maybe"], "training.packing: Invalid enum value 'maybe'; choose from true, false, auto"),
        (["eval_strategy=sometimes"], "eval_strategy: 'sometimes' has no counterpart here; known are steps, epoch, no"),
        (["do_train=false"], "hotswap eval"),
        (["lr_scheduler_type=wild"], "lr_scheduler_type: 'wild' has no counterpart here; known are linear, "),
        (["per_device_train_batch_size=0"], "training.batch_size: Expected int >= 1"),
        (["per_device_train_batchsize=1"], "unknown key"),
    ],
)
def test_contradictions_and_what_has_no_counterpart_are_refused(overrides: list[str], words: str) -> None:
    assert words in error_of(*overrides)


def test_an_empty_value_takes_back_what_an_earlier_source_set() -> None:
    environment = {"HOTSWAP_TRAIN_OPTIMIZER": "lion"}
    assert load_config(None, BASICS, environment).training.optimizer == "lion"
    assert load_config(None, [*BASICS, "optimizer="], environment).training.optimizer == "adamw"


@pytest.mark.parametrize("value", ["null", "", "-1", "0"])
def test_a_later_source_takes_a_value_back(value: str) -> None:
    environment = {"HOTSWAP_TRAIN_MAX_STEPS": "5"}
    assert load_config(None, BASICS, environment).training.max_steps == 5
    assert load_config(None, [*BASICS, f"max_steps={value}"], environment).training.max_steps is None


def test_the_same_value_twice_is_no_contradiction() -> None:
    assert load("epochs=2", "num_train_epochs=2").training.epochs == 2.0
    assert load("warmup_ratio=0.1", "warmup_steps=0").training.warmup == 0.1


def test_names_without_effect_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load("overwrite_cache=true", "preprocessing_num_workers=4")
    assert [record.getMessage() for record in caplog.records] == [
        "overwrite_cache has no effect: nothing is kept between runs",
        "preprocessing_num_workers has no effect: one process reads the data",
    ]


def keys_of(method: str, preference: str = "dpo") -> dict[str, Any]:
    return {"method": {"type": method}, "preference": {"type": preference}}


def test_every_name_leads_to_a_key_that_exists() -> None:
    for alias in ALIASES.values():
        if alias.ours and not alias.ours.startswith(ELSEWHERE):
            kinds = alias.methods or METHODS
            assert any(_exists(alias.ours, *kind) for kind in product(kinds, PREFERENCES)), alias.name
    for name in SAME_NAMES:
        assert name not in ALIASES
        assert _exists(name, "lora"), name


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["additional_target=embed_tokens,lm_head"], "method.modules_to_save", ["embed_tokens", "lm_head"]),
        (["adapter_name_or_path=/a/b"], "start_from", "/a/b"),
        (["quantization_bit=4", "quantization_type=nf4"], "training.quantize", "nf4"),
        (["bnb_4bit_quant_type=nf4"], "training.quantize", "none"),  # of a base that is not quantized
        (["max_len=64", "is_skip=true"], "data.too_long", "drop"),
        (["chat_template=tokenizer_default"], "data.template", "chat"),
        (["chat_template=chatml"], "data.template", "chatml"),
        (["torch_dtype=float32"], "training.dtype", "float32"),
        (["report_to=none"], "training.trackers", []),
        (["report_to=[wandb, tensorboard]"], "training.trackers", ["wandb"]),
        (["report_to=wandb,tensorboard"], "training.tensorboard", True),
        (["adam_beta2=0.95"], "training.adam_beta2", 0.95),
        (["stage=kto", "kto_chosen_weight=2"], "preference.desirable_weight", 2.0),
        (["predict_with_generate=false"], "training.generate_rows", 0),
        (["generation_max_length=64", "num_beams=1"], "training.generate_max_tokens", 64),
        (["val_max_target_length=64", "generation_num_beams=1"], "training.generate_max_tokens", 64),
        (["stage=dpo", "pref_ftx=0.5"], "preference.rpo_alpha", 0.5),
    ],
)
def test_more_names_of_whole_configurations(overrides: list[str], key: str, value: Any) -> None:
    assert value_of(load(*overrides), key) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("double_quantization=true", "set training.quantize: nf4-dq"),
        ("report_to=all", "report_to: name the trackers: none, tensorboard, or those that transformers knows"),
        (
            "deepspeed=nowhere/ds_z3.json",
            "there is no file nowhere/ds_z3.json; give its path, or say training.strategy: zero3",
        ),
        ("push_to_hub=true", "hotswap publish puts an adapter into a server"),
        ("ptuning_checkpoint=out/checkpoint-3000", "to score an adapter use hotswap eval"),
        ("num_beams=4", "answers are greedy; no beams are searched"),
        ("packing_strategy=wrapped", "packing never cuts an example in two"),
    ],
)
def test_what_is_done_otherwise_here_is_said(override: str, words: str) -> None:
    assert words in error_of(override)


def test_preferences_are_chosen_by_their_names_elsewhere() -> None:
    preference = load("stage=dpo", "pref_beta=0.3", "pref_loss=ipo").preference
    assert preference == DpoPreference(beta=0.3, loss_type="ipo")


def _exists(key: str, method: str, preference: str = "dpo") -> bool:
    try:
        full_key(key, keys_of(method, preference))
    except ConfigError:
        return False
    return True


NO_EFFECT = "no effect: "


def table() -> str:
    """The table of names as the documentation holds it."""
    rows = ["| name | from | here | how |", "|---|---|---|---|"]
    ignored: dict[str, list[str]] = {}
    for alias in sorted(ALIASES.values(), key=lambda alias: alias.name):
        words = alias.conversion.words
        if words.startswith(NO_EFFECT):
            ignored.setdefault(words.removeprefix(NO_EFFECT), []).append(f"`{alias.name}`")
            continue
        how = [words] if words else []
        how += [f"method {' or '.join(alias.methods)}"] if alias.methods else []
        how += [f"with {key}: {str(value).lower()}" for key, value in alias.with_it.items()]
        ours = f"`{alias.ours}`" if alias.ours and not alias.ours.startswith(ELSEWHERE) else ""
        rows.append(f"| `{alias.name}` | {alias.tools} | {ours} | {'; '.join(how)} |")
    rows += ["", "The same here: " + ", ".join(f"`{name}`" for name in SAME_NAMES) + ".", ""]
    rows += ["Ignored with a word, since nothing would change:", ""]
    rows += [f"- {why}: {', '.join(names)}" for why, names in sorted(ignored.items())]
    return "\n".join(rows) + "\n"


def test_the_documentation_holds_the_table() -> None:
    begin, end = "<!-- table -->\n", "<!-- end of table -->"
    text = DOC.read_text(encoding="utf-8")
    assert text[text.index(begin) + len(begin) : text.index(end)] == table()
