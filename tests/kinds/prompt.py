from __future__ import annotations

from peft import PrefixTuningConfig, PromptTuningConfig

from tests.kinds.case import Case

CLM = "CAUSAL_LM"

CASES: dict[str, Case] = {
    "prefix-16": Case(lambda: PrefixTuningConfig(num_virtual_tokens=16, task_type=CLM), std=0.3),
    "prefix-21": Case(lambda: PrefixTuningConfig(num_virtual_tokens=21, task_type=CLM), std=0.3),
    "prefix-5": Case(lambda: PrefixTuningConfig(num_virtual_tokens=5, task_type=CLM), std=0.3),
    "prompt-7": Case(lambda: PromptTuningConfig(num_virtual_tokens=7, task_type=CLM), std=0.3),
    "prompt-20": Case(lambda: PromptTuningConfig(num_virtual_tokens=20, task_type=CLM), std=0.3),
}
