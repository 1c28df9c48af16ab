"""Names of files that stand beside real packages, and that no adapter is read from."""

from __future__ import annotations

SYSTEM = (
    "._adapter_model.safetensors",
    "._adapter_config.json",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".gitattributes",
)
TRAINING = (
    "random_states_0.pkl", "sampler.bin", "sampler_1.bin", "dl_state_dict.bin", "custom_checkpoint_0.pkl",
    "optimizer.pt", "optimizer.bin", "optimizer_1.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state.pth",
    "rng_state_7.pth", "training_args.bin", "trainer_state.json", "zero_to_fp32.py", "latest",
    "events.out.tfevents.1700000000.host.1.0", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "README.md", "recipe_state.pt", "training_state.pt", "dataloader_state.pt", "grad_scaler.pt",
)  # fmt: skip
BESIDE_OUR_WEIGHTS = (
    "adapter_model.bin",
    "pytorch_model_fsdp.bin",
    "pytorch_model-00001-of-00002.bin",
    "model.safetensors",
    "ft-model-00001-of-00002.safetensors",
    "hf_model_0001_0.pt",
    "adapter_0.pt",
    "adapter_model.pt",
    "consolidated.00.pth",
)
JUNK = (*SYSTEM, *TRAINING, *BESIDE_OUR_WEIGHTS)
