from __future__ import annotations

from peft import LoraConfig

from tests.kinds.case import Case

ATTENTION = ["q_proj", "v_proj"]
CLM = "CAUSAL_LM"

CASES: dict[str, Case] = {
    "lora-r4": Case(lambda: LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=CLM)),
    "lora-r8": Case(lambda: LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type=CLM)),
    "lora-r8-attention": Case(lambda: LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION, task_type=CLM)),
    "rslora-r16": Case(
        lambda: LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=["o_proj", "down_proj"], task_type=CLM)
    ),
    "lora-patterns": Case(
        lambda: LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=ATTENTION,
            rank_pattern={"layers.1.self_attn.q_proj": 6},
            alpha_pattern={"v_proj": 32},
            task_type=CLM,
        )
    ),
    "lora-bias": Case(lambda: LoraConfig(r=4, target_modules=ATTENTION, bias="lora_only", task_type=CLM)),
    "lora-bias-all": Case(lambda: LoraConfig(r=4, target_modules=ATTENTION, bias="all", task_type=CLM)),
}
