"""Writes random adapters for a base, as work for load tests.

    python -m benchmarks.make_adapters --base DIR --out DIR --count 16

writes LoRA of rank 8 with alpha 16 on every linear layer. Any server that takes PEFT directories can serve them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

DEVIATION = 0.02  # of what is added to each trained number: most texts change, and stay texts
_ALL: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
_TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=8, lora_alpha=16, **_ALL),
    "dora": lambda: LoraConfig(r=8, lora_alpha=16, use_dora=True, **_ALL),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **_TASK
    ),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=16, **_TASK),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=16, **_TASK),
    "loha": lambda: LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], **_TASK),
    "lokr": lambda: LoKrConfig(r=4, target_modules=["q_proj", "v_proj"], **_TASK),
    "vera": lambda: VeraConfig(r=64, target_modules=["q_proj", "o_proj"], **_TASK),
    "oft": lambda: OFTConfig(oft_block_size=32, target_modules=["q_proj", "v_proj"], **_TASK),
}


def main() -> None:
    """Write ``OUT/l0`` to ``OUT/l<count - 1>``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    args = parser.parse_args()
    for number in range(args.count):
        write_adapter(args.base, args.out / f"l{number}", "lora", seed=number)
        print(args.out / f"l{number}")


def write_adapter(base: Path, path: Path, kind: str, seed: int) -> None:
    """Write a PEFT package of a ``kind`` of KINDS, drawn from ``seed``; one that is there is taken as it is."""
    if (path / "adapter_config.json").is_file():
        return
    disable_progress_bar()
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), KINDS[kind]())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "prompt" not in name:  # virtual tokens are random from the start
            parameter.data.add_(torch.randn_like(parameter) * DEVIATION)
    model.save_pretrained(path)


if __name__ == "__main__":
    main()
