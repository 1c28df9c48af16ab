"""One training run of ``benchmarks.versus_trl`` in a process of its own: SIDE SETTINGS OUTPUT."""

from __future__ import annotations

import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

ADAPTER = "adapter"


def main() -> None:
    """Train, leaving OUTPUT/adapter and OUTPUT/training.json."""
    side, settings, output = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings["threads"])
    counter = _Counter()
    SIDES[side](settings, output)
    figures = {
        "train_seconds": round(counter.seconds, 3),
        "cpu_seconds": round(counter.cpu_seconds, 3),
        "tokens": counter.tokens,
        "tokens_per_second": round(counter.tokens / counter.seconds, 1),
        "peak_memory_mb": round(_peak_memory_mb(), 1),
    }
    (output / "training.json").write_text(json.dumps(figures), encoding="utf-8")


class _Counter:
    """Times ``Trainer.train`` and counts the tokens, not the padding, that its steps are given: both sides alike."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        train, step = Trainer.train, Trainer.training_step

        def timed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            began, cpu_began = time.perf_counter(), time.process_time()
            out = train(trainer, *args, **kwargs)
            self.seconds, self.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
            return out

        def counted(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.tokens += int(mask.sum() if mask is not None else inputs["input_ids"].numel())
            return step(trainer, model, inputs, *args, **kwargs)

        Trainer.train, Trainer.training_step = timed, counted


def _ours(settings: dict[str, Any], output: Path) -> None:
    from trainer.config.loading import load_config
    from trainer.run import train

    config = output / "config.json"  # JSON is YAML
    config.write_text(json.dumps(_configuration(settings, output)), encoding="utf-8")
    package = train(load_config(config, [], {})).package
    assert package is not None


def _configuration(settings: dict[str, Any], output: Path) -> dict[str, Any]:
    return {
        "base": settings["base"],
        "output": str(output),
        "method": {"type": "lora", "r": settings["r"], "alpha": float(settings["alpha"])},
        "data": {"path": settings["train"], "validation": 0, "max_length": settings["max_length"]},
        "training": {
            "learning_rate": settings["learning_rate"],
            "max_steps": settings["steps"],
            "batch_size": settings["batch_size"],
            "save_steps": settings["steps"],
            "log_steps": 10,
            "seed": settings["seed"],
            "dtype": settings["dtype"],
            "threads": settings["threads"],
        },
    }


def _trl_same(settings: dict[str, Any], output: Path) -> None:
    """Our ids in our order. The order is one long epoch, which TRL goes through as it is."""
    from datasets import Dataset

    from trainer.config.loading import load_config
    from trainer.data.batches import LengthBucketSampler
    from trainer.data.training_data import load_data

    config = output / "config.json"
    config.write_text(json.dumps(_configuration(settings, output)), encoding="utf-8")
    data_config = load_config(config, [], {})
    tokenizer = _tokenizer(settings)
    examples = load_data(data_config.data, tokenizer, [tokenizer.eos_token_id], settings["seed"]).train
    sampler = LengthBucketSampler([len(example) for example in examples], settings["batch_size"], settings["seed"])
    order: list[int] = []
    for epoch in range(math.ceil(settings["steps"] * settings["batch_size"] / len(examples)) + 1):
        sampler.set_epoch(epoch)
        order += _whole_batches(list(sampler), settings["batch_size"])
    rows = [
        {"input_ids": list(examples[i].input_ids), "labels": list(examples[i].labels)}
        for i in order[: settings["steps"] * settings["batch_size"]]
    ]
    _trl(settings, output, Dataset.from_list(rows), train_sampling_strategy="sequential", **_plain())


def _whole_batches(order: list[int], size: int) -> list[int]:
    """Without the last batch of an epoch when it is short: TRL would fill it up from the next one."""
    return order[: len(order) - len(order) % size]


def _trl_best(settings: dict[str, Any], output: Path) -> None:
    _trl(settings, output, _conversations(settings), train_sampling_strategy="group_by_length", **_plain())


def _trl_default(settings: dict[str, Any], output: Path) -> None:
    _trl(settings, output, _conversations(settings))


def _plain() -> dict[str, Any]:
    return {"gradient_checkpointing": False, "bf16": False}


def _conversations(settings: dict[str, Any]) -> Any:
    from datasets import Dataset

    lines = Path(settings["train"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(settings["seed"]).shuffle(rows)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            for row in rows
        ]
    )


def _trl(settings: dict[str, Any], output: Path, rows: Any, **options: Any) -> None:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    cpu = not torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(output / "trl"),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        max_length=settings["max_length"],
        seed=settings["seed"],
        save_strategy="steps",
        save_steps=settings["steps"],
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        **options,
    )
    model = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=getattr(torch, settings["dtype"]))
    lora = LoraConfig(task_type="CAUSAL_LM", r=settings["r"], lora_alpha=settings["alpha"], target_modules="all-linear")
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=rows, processing_class=_tokenizer(settings), peft_config=lora
    )
    trainer.train()
    trainer.model.save_pretrained(output / ADAPTER)


def _tokenizer(settings: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(settings["base"])


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


SIDES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "hotswap": _ours,
    "trl-same": _trl_same,
    "trl-best": _trl_best,
    "trl-default": _trl_default,
}

if __name__ == "__main__":
    main()
