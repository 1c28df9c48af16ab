"""Training in two processes is training in one: the same losses, evaluations, tokens and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.distributed.support import train_in
from tests.trainer.pooling.support import class_rows, tag_rows
from tests.trainer.support import colour_rows, make_config
from trainer.config.schema import TrainConfig
from trainer.loop.records import read_metrics
from trainer.run import train

ODD = colour_rows(
    35
)  # 27 rows to train: the last batch of 4 has 3, one of 8 has 3 too, which is nothing for the second
RUNS: dict[str, list[str]] = {
    "lora": [
        "method=lora",
        "r=4",
        "dropout=0",
        "gradient_accumulation=2",
        "max_steps=8",
        "eval_steps=3",
        "best_checkpoint=true",
        "save_steps=3",
    ],
    "prefix": ["method=prefix", "tokens=4", "projection_hidden_size=32", "batch_size=8", "gradient_checkpointing=true"],
    "full": ["method=full", "learning_rate=1e-3", "packing=true", "max_length=64", "max_steps=6"],
    "adalora": ["method=adalora", "init_r=6", "target_r=3", "dropout=0", "delta_t=2", "learning_rate=5e-2"],
    "tokens": ["method=bottleneck", "bottleneck_size=8", "added_tokens=['[SQL]', re]", "exact_match_rows=4"],
    "starts": ["method=lora", "r=4", "exact_match_rows=4"],
    "stops early": [
        "method=lora",
        "dropout=0",
        "early_stopping_min_delta=10",
        "max_steps=20",
        "eval_steps=2",
        "early_stopping=2",
        "save_steps=2",
    ],
}
QUICK = ("lora", "full")
FSDP = ("lora", "prefix", "full", "tokens", "starts")
EXACT = {
    "step": 0,
    "epoch": 0,
    "loss": 1e-5,
    "eval_loss": 1e-5,
    "validation_loss": 1e-5,
    "exact_match": 0,
    "learning_rate": 0,
    "grad_norm": 1e-4,
}


def elsewhere(config: TrainConfig, name: str) -> TrainConfig:
    return msgspec.structs.replace(config, output=str(Path(config.output).parent / name))


def with_strategy(config: TrainConfig, strategy: Any) -> TrainConfig:
    return msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, strategy=strategy))


def tensors_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    output = Path(config.output)
    files = [*output.glob("adapter/adapter_model.safetensors"), *output.glob("base/model.safetensors")]
    tensors: dict[str, torch.Tensor] = load_file(files[0])
    return tensors


def assert_same(one: TrainConfig, other: TrainConfig) -> None:
    """The runs recorded the same, but for the clock, and exported the same."""
    first, second = (read_metrics(Path(config.output) / "metrics.jsonl") for config in (one, other))
    assert len(first) == len(second) > 6
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() & EXACT.keys():
            assert b[key] == pytest.approx(a[key], rel=EXACT[key]), (a["step"], key)
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [QUICK, pytest.param([*RUNS], marks=pytest.mark.slow)], ids=["some", "all"])
def test_two_processes_train_as_one(tiny_base: Path, tmp_path: Path, names: Sequence[str]) -> None:
    configs = {name: make_config(tmp_path / name, tiny_base, *RUNS[name], rows=ODD) for name in names}
    if "starts" in names:
        first = train(make_config(tmp_path / "first", tiny_base, *RUNS["starts"]))
        configs["starts"] = msgspec.structs.replace(configs["starts"], start_from=str(first.package))
    two = {name: elsewhere(config, "two") for name, config in configs.items()}
    divided = {name: elsewhere(with_strategy(configs[name], "fsdp"), "fsdp") for name in FSDP if name in names}
    train_in(2, [*two.values(), *divided.values()], tmp_path)
    for name, config in configs.items():
        train(config)
        assert_same(config, two[name])
        if name in divided:
            assert_same(config, divided[name])
    if "stops early" in names:
        assert read_metrics(Path(two["stops early"].output) / "metrics.jsonl")[-1]["step"] == 6


_LORA = ["method=lora", "dropout=0"]
READS: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "classes": (
        [*_LORA, "task=classification", "task.class_weights=balanced", "gradient_accumulation=2"],
        class_rows(43),
    ),
    "tags": (["task=token-classification", "method=prefix", "tokens=4", "projection=false"], tag_rows(43)),
    "several": (
        [*_LORA, "task=classification"],
        [{"text": row["text"], "label": [row["label"], "all"][i % 2 :]} for i, row in enumerate(class_rows(43))],
    ),
    "pairs": (
        [*_LORA, "task=embedding", "gradient_accumulation=2"],
        [{"anchor": f"so {i}", "positive": f"and {i % 20}", "negatives": [f"no {i}"] * (i % 3)} for i in range(43)],
    ),
    "scored pairs": (
        [*_LORA, "task=embedding"],
        [{"sentence1": f"so {i}", "sentence2": f"and {i}", "score": i % 5 / 5} for i in range(43)],
    ),
    "numbers": ([*_LORA, "task=regression"], [{"text": "so " * (i % 5 + 1), "score": i % 5 / 5} for i in range(43)]),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "names", [("tags", "pairs"), pytest.param([*READS], marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_two_processes_learn_to_read_as_one(tiny_base: Path, tmp_path: Path, names: Sequence[str]) -> None:
    """35 rows to train on in batches of 8: of the last batch of an epoch the second process has nothing but blanks."""
    common = ["batch_size=8", "max_steps=7", "eval_steps=3", "best_checkpoint=true", "save_steps=3"]
    configs = {
        name: make_config(tmp_path / name, tiny_base, *common, *READS[name][0], rows=READS[name][1]) for name in names
    }
    two = {name: elsewhere(config, "two") for name, config in configs.items()}
    train_in(2, [*two.values()], tmp_path)
    for name, config in configs.items():
        train(config)
        assert_same(config, two[name])
