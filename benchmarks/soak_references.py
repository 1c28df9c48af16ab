"""Makes adapters of several kinds for a soak, and takes what each must answer from peft alone, one request at a time.

    python -m benchmarks.soak_references --base DIR --out DIR

Only prompts whose greedy answers are clear for the base and for every adapter are kept: where the best two logits are
nearly equal, the shape of a batch may decide (docs/serving.md). ``loadtests.soak`` reads what is written.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS, PROMPTS, TRIED = 12, 6, 18
MARGIN = 2e-3  # between the best two logits, in fp32
_TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
CONFIGS: dict[str, Any] = {
    "lora-a": lambda: LoraConfig(r=8, target_modules="all-linear", **_TASK),
    "lora-b": lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **_TASK),
    "dora": lambda: LoraConfig(r=8, use_dora=True, target_modules=["q_proj", "down_proj"], **_TASK),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **_TASK
    ),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=10, **_TASK),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=8, **_TASK),
}


def main() -> None:
    """Write ``OUT/<name>`` for every adapter, and ``OUT/references.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    paths: dict[str, Path] = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = get_peft_model(_load(args.base), config())
        _randomize(model, seed)
        model.save_pretrained(paths.setdefault(name, args.out / name))
    print(write_references(args.out, args.base, paths))


def write_references(out: Path, base: Path, packages: Mapping[str, Path]) -> Path:
    """Write what ``loadtests.soak.references`` reads; returns the file."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = _prompts(len(tokenizer), set(tokenizer.all_special_ids))
    texts: dict[str, dict[int, str]] = {}
    clear = list(range(len(prompts)))
    for name, path in {"": None, **packages}.items():
        model = _load(base) if path is None else PeftModel.from_pretrained(_load(base), path)
        found = {i: _answer(model.eval(), prompts[i], tokenizer) for i in clear}
        texts[name] = {i: text for i, text in found.items() if text is not None}
        clear = list(texts[name])
    if len(clear) < PROMPTS:
        raise SystemExit(f"only {len(clear)} of {len(prompts)} prompts have clear answers")
    answers = {
        name: [{"prompt": prompts[i], "max_tokens": TOKENS, "text": of[i]} for i in clear[:PROMPTS]]
        for name, of in texts.items()
    }
    entries = {name: {"path": str(path), "answers": answers[name]} for name, path in packages.items()}
    out.mkdir(parents=True, exist_ok=True)
    file = out / "references.json"
    file.write_text(json.dumps({"model": str(base), "answers": answers[""], "packages": entries}), encoding="utf-8")
    return file


def _load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")


@torch.no_grad()
def _randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw what would be trained, far enough from its start that texts change; virtual tokens are random already."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0.0, 0.05)
        elif "ia3" in name:
            parameter.normal_(1.0, 0.2)


def _prompts(vocab_size: int, special: set[int]) -> list[list[int]]:
    """Random tokens: no two prompts share a cached beginning."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 40, (TRIED,), generator=generator).tolist()
    drawn: Sequence[list[int]] = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]
    return [[token for token in prompt if token not in special] for prompt in drawn]


@torch.no_grad()
def _answer(model: Any, prompt: list[int], tokenizer: Any) -> str | None:
    """The greedy text; None when it is not clear: two tokens nearly as good, or one that has no text of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft says that it makes its own position ids
        made = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=-1,  # never: it goes past the end token
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens: list[int] = made.sequences[0, -TOKENS:].tolist()
    best = torch.stack(made.logits)[:, 0].topk(2).values  # [TOKENS, 2]
    clear = bool((best[:, 0] - best[:, 1] > MARGIN).all()) and not set(tokens) & set(tokenizer.all_special_ids)
    return str(tokenizer.decode(tokens)) if clear else None


if __name__ == "__main__":
    main()
