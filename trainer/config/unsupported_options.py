"""Options of other trainers that are none here: what makes no difference, and what to do instead."""

from __future__ import annotations

HF = "transformers, TRL, LLaMA-Factory"
GLM = "ChatGLM"  # the P-Tuning scripts of ChatGLM-6B and ChatGLM2-6B
GLM_HF = f"{GLM}, {HF}"
TUNE = "ChatGLM-Finetuning"  # the scripts that compare P-Tuning v2, Freeze and LoRA
FACTORY = "LLaMA-Factory"
AXOLOTL = "Axolotl"
TRL = "TRL"
ALL = f"{HF}, {AXOLOTL}"
_KERNELS = "transformers and torch choose the kernels"
_ONE_READER = "one process reads the data"
_NOTHING_KEPT = "nothing is kept between runs"
_LOSS_ONLY = "validation measures the loss; hotswap eval scores answers"
_FOUND = "the base says it itself"
# name: why it makes no difference
OPTIONS_WITHOUT_EFFECT = {
    "activation_offloading": "activations stay on the device; see gradient_checkpointing",
    "attn_implementation": _KERNELS,
    "compute_accuracy": _LOSS_ONLY,
    "dataloader_num_workers": _ONE_READER,
    "dataset_prepared_path": _NOTHING_KEPT,
    "ddp_find_unused_parameters": "nothing here needs it",
    "ddp_timeout": "nothing here needs it",
    "do_eval": "validation rows are evaluated wherever there are any",
    "enable_liger_kernel": _KERNELS,
    "eval_sample_packing": "validation rows are never packed; their loss is the same",
    "flash_attention": _KERNELS,
    "flash_attn": _KERNELS,
    "gradient_checkpointing_kwargs": "checkpointing is the kind without re-entrance",
    "group_by_length": "rows of like length always train together",
    "include_num_input_tokens_seen": "tokens are always counted",
    "infer_backend": "answers come from hotswap's own server",
    "logging_dir": "TensorBoard's files are in the output's folder tensorboard",
    "lora_embedding_kernel": _KERNELS,
    "lora_mlp_kernel": _KERNELS,
    "lora_o_kernel": _KERNELS,
    "lora_qkv_kernel": _KERNELS,
    "max_eval_samples": "all validation rows count; data.validation says how many",
    "mode": _FOUND,
    "model_type": _FOUND,
    "num_beams": _LOSS_ONLY,
    "overwrite_cache": _NOTHING_KEPT,
    "pad_to_sequence_len": "batches are as long as their longest row",
    "padding_free": "rows of like length train together, so there is next to no padding",
    "per_device_eval_batch_size": "validation takes batches of training.batch_size; its loss is the same for any",
    "plot_loss": "loss.png is always drawn",
    "precompute_ref_log_probs": "the reference is always asked once, before training",
    "predict_with_generate": "answers are scored by hotswap eval",
    "preprocessing_num_workers": _ONE_READER,
    "resize_vocab": "added_tokens have rows of their own; no table is resized",
    "run_name": "a run is called by its output",
    "save_safetensors": "weights are always safetensors",
    "streaming": "files are always read as a stream",
    "strict": "unknown keys are always refused",
    "tf32": "torch decides",
    "tokenized_path": _NOTHING_KEPT,
    "tokenizer_type": _FOUND,
    "trust_remote_code": "code in a base is never run",
    "upcast_layernorm": "models compute their norms in float32 themselves",
    "use_fast_tokenizer": "tokenizers are always the fast ones",
    "use_unsloth": _KERNELS,
    "val_max_target_length": _LOSS_ONLY,
    "xformers_attention": _KERNELS,
}
SWITCHES_WITHOUT_EFFECT = ("do_eval", "predict_with_generate", "plot_loss", "group_by_length", "overwrite_cache")
_STEPS = "say how often with training.eval_steps and training.save_steps"
_FILE = "name the file itself with data.path"
_SCORE = "to score an adapter use hotswap eval"
_DIVIDED = "use training.strategy (fsdp, zero1, zero2, zero3) with --nproc"
_PUBLISH = "hotswap publish puts an adapter into a server; there is no upload to a hub"
_NO_MEMORY_TRICK = "leave it out; adamw_8bit, quantize and gradient_checkpointing save memory"
_TRACKER = "set training.trackers: [wandb], and its own variables such as WANDB_PROJECT"
_NESTED = "set training.quantize: nf4-dq (or fp4-dq)"
# name: (tools, values that are what happens anyway, what to do instead of others)
UNSUPPORTED_OPTIONS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "bnb_4bit_quant_type": (f"{TRL}, {AXOLOTL}", ("nf4",), "set training.quantize: fp4"),
    "create_new_adapter": (FACTORY, ("false",), "merge the first adapter into a base (hotswap merge)"),
    "dataset": (FACTORY, (), _FILE),
    "dataset_config": (TRL, (), "write it before the split: data.split: CONFIGURATION/train"),
    "dataset_dir": (FACTORY, (), _FILE),
    "dataset_test_split": (TRL, (), "name its file with data.validation, or a share of the rows"),
    "datasets": (AXOLOTL, (), _FILE),
    "deepspeed": (ALL, (), _DIVIDED),
    "do_predict": (GLM_HF, ("false",), _SCORE),
    "do_train": (GLM_HF, ("true",), _SCORE),
    "double_quantization": (FACTORY, ("false",), _NESTED),
    "ds_file": (TUNE, (), _DIVIDED),
    "eos_token": (TRL, (), "turns end as the base's own template ends them"),
    "eval_dataset": (FACTORY, (), "name its file with data.validation"),
    "eval_strategy": (ALL, ("steps",), _STEPS),
    "evals_per_epoch": (AXOLOTL, (), _STEPS),
    "evaluation_strategy": (ALL, ("steps",), _STEPS),
    "fp16": (
        ALL,
        ("false",),
        "leave it out, or use training.dtype: bfloat16",
    ),
    "fsdp": (ALL, (), _DIVIDED),
    "fsdp_config": (ALL, (), _DIVIDED),
    "hub_model_id": (ALL, (), _PUBLISH),
    "ignore_pad_token_for_loss": (GLM, ("true",), "padding is never learned"),
    "lora_fan_in_fan_out": (AXOLOTL, ("false",), "it is found out from the base's layers"),
    "lora_target_parameters": (TRL, (), "LoRA trains modules here; name them with method.target_modules"),
    "lora_task_type": (TRL, ("CAUSAL_LM",), "adapters here are for models that generate"),
    "lr_scheduler_kwargs": (ALL, (), "choose another training.scheduler"),
    "metric_for_best_model": (
        ALL,
        ("loss", "eval_loss"),
        "the validation loss decides",
    ),
    "mix_strategy": (FACTORY, ("concat",), "sets are read one after the other; rows are shuffled anyway"),
    "model_revision": (TRL, (), "download that revision and give its directory as base"),
    "overwrite_output_dir": (GLM_HF, ("false",), "give the switch --overwrite"),
    "packing_strategy": (TRL, ("bfd",), "packing never cuts an example in two"),
    "pissa_init": (FACTORY, ("false",), "LoRA begins as the base here; leave it out"),
    "ptuning_checkpoint": (
        GLM,
        (),
        f"{_SCORE}; to train on from one, name a checkpoint of a run of hotswap with start_from",
    ),
    "pure_bf16": (FACTORY, ("false",), "set training.dtype to bfloat16; what is trained stays in float32"),
    "push_to_hub": (ALL, ("false",), _PUBLISH),
    "quantization_method": (FACTORY, ("bnb", "bitsandbytes"), "bases are quantized by bitsandbytes"),
    "quantization_type": (FACTORY, ("nf4",), "set training.quantize: fp4"),
    "ref_model": (FACTORY, (), "the reference is the base, or what start_from names"),
    "resume_from_checkpoint": (
        ALL,
        ("false",),
        "give the switch --resume",
    ),
    "rope_scaling": (FACTORY, (), "a base keeps the context it has; adapters must fit it as it is served"),
    "save_only_model": (HF, ("false",), "checkpoints hold what it takes to go on"),
    "save_strategy": (ALL, ("steps",), _STEPS),
    "saves_per_epoch": (AXOLOTL, (), _STEPS),
    "shift_attn": (FACTORY, ("false",), "attention is the base's own; leave it out"),
    "special_tokens": (AXOLOTL, (), "list new tokens with added_tokens; the base's own stay"),
    "sync_ref_model": (TRL, ("false",), "the reference stays as it is"),
    "use_badam": (FACTORY, ("false",), _NO_MEMORY_TRICK),
    "use_galore": (FACTORY, ("false",), _NO_MEMORY_TRICK),
    "use_bnb_nested_quant": (TRL, ("false",), _NESTED),
    "wandb_entity": (AXOLOTL, (), _TRACKER),
    "wandb_project": (AXOLOTL, (), _TRACKER),
}
UNSUPPORTED_SWITCHES = (
    *("fp16", "do_train", "do_predict", "overwrite_output_dir"),
    *("resume_from_checkpoint", "push_to_hub", "use_bnb_nested_quant"),
)
