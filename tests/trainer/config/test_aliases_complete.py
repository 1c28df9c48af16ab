"""Every name that transformers, peft and the usual files of other trainers have is known: none is an unknown key."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import Seq2SeqTrainingArguments

from trainer.config.aliases import ALIASES
from trainer.config.loading import load_config, unknown_name
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError

OLDER = (  # of transformers 4
    "evaluation_strategy overwrite_output_dir group_by_length warmup_ratio logging_dir save_safetensors no_cuda fp16 "
    "fp16_opt_level half_precision_backend fp16_backend sharded_ddp per_gpu_train_batch_size adafactor debug ray_scope "
    "push_to_hub_token dispatch_batches split_batches include_tokens_per_second jit_mode_eval use_ipex tpu_num_cores"
)
AXOLOTL = (
    "base_model model_type tokenizer_type is_llama_derived_model load_in_8bit load_in_4bit strict push_dataset_to_hub "
    "datasets test_datasets dataset_prepared_path val_set_size adapter lora_model_dir sequence_len sample_packing "
    "eval_sample_packing pad_to_sequence_len lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear "
    "lora_fan_in_fan_out wandb_project wandb_entity wandb_watch wandb_name wandb_log_model output_dir num_epochs "
    "gradient_accumulation_steps micro_batch_size optimizer torchdistx_path lr_scheduler learning_rate train_on_inputs "
    "group_by_length bf16 fp16 tf32 gradient_checkpointing early_stopping_patience resume_from_checkpoint local_rank "
    "logging_steps xformers_attention flash_attention gptq_groupsize gptq_model_v1 warmup_steps evals_per_epoch "
    "eval_table_size saves_per_epoch debug deepspeed weight_decay fsdp fsdp_config special_tokens plugins ddp "
    "loss_watchdog_threshold loss_watchdog_patience chat_template rl unfrozen_parameters sdp_attention s2_attention"
)
LLAMA_FACTORY = (
    "model_name_or_path adapter_name_or_path cache_dir trust_remote_code flash_attn quantization_bit rope_scaling "
    "template dataset eval_dataset dataset_dir cutoff_len train_on_prompt mask_history streaming mix_strategy "
    "overwrite_cache preprocessing_num_workers max_samples val_size packing neat_packing sft_packing tool_format "
    "tokenized_path image_max_pixels video_max_pixels freeze_trainable_layers freeze_trainable_modules lora_target "
    "additional_target lora_rank lora_alpha lora_dropout loraplus_lr_ratio use_rslora use_dora pissa_init pref_beta "
    "pref_ftx pref_loss dpo_beta kto_chosen_weight ref_model use_galore use_badam pure_bf16 stage finetuning_type "
    "use_llama_pro plot_loss compute_accuracy enable_thinking checkpoint_dir name_module_trainable num_layer_trainable"
)
CHATGLM = (
    "train_path model_dir max_len max_src_len is_skip train_batch_size mode train_type show_loss_step save_model_step "
    "ds_file lora_dim lora_module_name freeze_module_name pre_seq_len prefix_projection prompt_text local_rank "
    "ptuning_checkpoint train_file validation_file test_file prompt_column response_column history_column "
    "source_prefix max_source_length max_target_length master_port pad_to_max_length ignore_pad_token_for_loss"
)


def names() -> list[str]:
    kinds = (Seq2SeqTrainingArguments, LoraConfig, PrefixTuningConfig, PromptTuningConfig, PromptEncoderConfig)
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    return [*fields, *" ".join((OLDER, AXOLOTL, LLAMA_FACTORY, CHATGLM)).split()]


def test_no_name_is_unknown() -> None:
    assert [problem for name in names() if (problem := unknown_name(name))] == []


def load(*overrides: str) -> TrainConfig:
    return load_config(None, ["output=out", "data.path=rows.jsonl", *overrides], {})


@pytest.mark.parametrize(
    "given",
    [
        *("task_type=CAUSAL_LM", "task_type=SEQ_2_SEQ_LM", "init_lora_weights=true", "freeze_trainable_modules=all"),
        *("nnodes=1", "use_galore=false", "model_revision=main", "unfrozen_parameters=[]", "loftq_config={}"),
    ],
)
def test_what_happens_anyway_says_nothing(given: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load(given) == load()
    assert not caplog.records


@pytest.mark.parametrize(
    "given",
    [
        *("inference_mode=true", "inference_mode=false", "device_map=auto", "fan_in_fan_out=true", "lora_on_cpu=true"),
        *("save_on_each_node=true", "save_only_model=true", "local_rank=0", "master_port=29500", "wandb_project=x"),
        *("special_tokens={pad_token: x}", "low_cpu_mem_usage=true", "plugins=[a.b]", "dataloader_drop_last=true"),
    ],
)
def test_what_cannot_matter_is_ignored_with_a_word(given: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(given) == load()
    name = given.partition("=")[0]
    assert [record.getMessage() for record in caplog.records] == [f"{name} has {ALIASES[name].conversion.words}"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "task_type=SEQ_CLS",
            "task_type: set task: classification, token-classification, regression or embedding instead",
        ),
        ("init_lora_weights=pissa", "init_lora_weights: LoRA begins as the base here"),
        ("layers_to_transform=[1]", "write layers into the pattern method.target_modules"),
        ("nnodes=2", "torchrun --nnodes ... -m hotswap train"),
        ("use_cpu=true", "CUDA_VISIBLE_DEVICES= hotswap train"),
    ],
)
def test_what_would_matter_is_refused_with_what_to_do(given: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "method"),
    [
        (["peft_type=LORA", "r=4", "lora_alpha=8"], {"type": "lora", "r": 4, "alpha": 8.0}),
        (["peft_type=PROMPT_TUNING", "num_virtual_tokens=8"], {"type": "prompt", "tokens": 8}),
        (["method=prompt", "pre_seq_len=8"], {"type": "prompt", "tokens": 8}),
        (["pre_seq_len=8"], {"type": "prefix", "tokens": 8, "projection": False}),
        (["finetuning_type=full", "lora_target=q_proj", "lora_rank=8"], {"type": "full"}),
        (["method=full", "lora_target=q_proj"], {"type": "full"}),
        (["train_type=freeze", "lora_dim=8", "pre_seq_len=16"], {"type": "freeze", "layers": 5}),
        (["finetuning_type=lora", "freeze_trainable_layers=2"], {"type": "lora"}),
    ],
)
def test_settings_of_the_method_that_is_chosen(given: list[str], method: dict[str, Any]) -> None:
    found = load(*given).method
    assert {key: getattr(found, key) for key in method if key != "type"} | {"type": found.KIND} == method
