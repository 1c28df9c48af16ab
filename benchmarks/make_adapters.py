"""Writes N random LoRA adapters for a base, as work for a load test.

    python -m benchmarks.make_adapters --base DIR --out DIR --count 16

Every linear layer gets rank 8 with alpha 16; B is drawn with a deviation of 0.05, large enough that each adapter
changes the text. Any server that takes PEFT directories can serve them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main() -> None:
    """Write ``OUT/l0`` to ``OUT/l<count - 1>``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.bfloat16), config)
    for number in range(args.count):
        randomize(model, seed=number)
        model.save_pretrained(args.out / f"l{number}")
        print(args.out / f"l{number}")


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw every LoRA A and B of ``model`` anew from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            parameter.data.uniform_(-bound, bound, generator=generator)
        elif "lora_B" in name:
            parameter.data.normal_(0.0, 0.05, generator=generator)


if __name__ == "__main__":
    main()
