from __future__ import annotations

from peft import (
    CartridgeConfig,
    CPTConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)

from tests.kinds.case import CLM, Case

CASES: dict[str, Case] = {
    "prefix-16": Case(lambda: PrefixTuningConfig(num_virtual_tokens=16, task_type=CLM), std=0.3),
    "prefix-21": Case(lambda: PrefixTuningConfig(num_virtual_tokens=21, task_type=CLM), std=0.3),
    "prefix-5": Case(lambda: PrefixTuningConfig(num_virtual_tokens=5, task_type=CLM), std=0.3),
    "prompt-7": Case(lambda: PromptTuningConfig(num_virtual_tokens=7, task_type=CLM), std=0.3),
    "prompt-20": Case(lambda: PromptTuningConfig(num_virtual_tokens=20, task_type=CLM), std=0.3),
    "p-tuning-mlp": Case(
        lambda: PromptEncoderConfig(num_virtual_tokens=6, encoder_hidden_size=32, task_type=CLM), std=0.3
    ),
    "p-tuning-lstm": Case(
        lambda: PromptEncoderConfig(
            num_virtual_tokens=9,
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=32,
            encoder_num_layers=1,
            task_type=CLM,
        ),
        std=0.5,
    ),
    "multitask-prompt": Case(
        lambda: MultitaskPromptTuningConfig(num_virtual_tokens=6, num_tasks=1, num_ranks=3, task_type=CLM), std=0.6
    ),
    "cpt": Case(
        lambda: CPTConfig(
            cpt_token_ids=[5, 200, 31, 7, 90, 33, 8],
            cpt_mask=[1] * 7,
            cpt_tokens_type_mask=[1, 2, 2, 3, 4, 2, 4],
            opt_projection_epsilon=0.9,
            task_type=CLM,
        ),
        std=0.3,
    ),
    "cartridge": Case(lambda: CartridgeConfig(num_virtual_tokens=11, num_frozen_tokens=2, task_type=CLM), std=0.3),
}
