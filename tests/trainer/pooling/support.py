"""Small data that a tiny model learns to read, and what transformers and peft make of a package by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from tests.own_formats import apply_own, is_own
from tests.trainer.support import WORDS
from trainer.config.schema import TrainConfig
from trainer.pooling.examples import PooledExamples
from trainer.pooling.pooled_data import PooledData, load_pooled_data


def class_rows(count: int = 48) -> list[dict[str, Any]]:
    """A text, and its colour."""
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    return [{"text": f"{'very ' * (i % 3)}{word}", "label": word} for i, word in enumerate(words)]


def tag_rows(count: int = 48) -> list[dict[str, Any]]:
    """Words, of which one is a colour and two are a person."""
    rows = []
    for i in range(count):
        words = ["the", *["very"] * (i % 3), WORDS[i % len(WORDS)], "car", "of", "Ada", "Lovelace"]
        tags = ["O"] * len(words)
        tags[1 + i % 3], tags[-2], tags[-1] = "B-COLOUR", "B-PER", "I-PER"
        rows.append({"tokens": words, "tags": tags})
    return rows


def held_back(config: TrainConfig, base: Path) -> PooledExamples:
    """The rows to validate on of the run of ``config``."""
    return data_of(config, base).validation


def data_of(config: TrainConfig, base: Path) -> PooledData:
    """The data of the run of ``config``."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    assert config.reading is not None
    return load_pooled_data(config.data, config.reading, tokenizer, config.training.seed)


@torch.no_grad()
def logits_by_peft(base: Path, package: Path, rows: list[tuple[int, ...]]) -> Tensor:
    """Logits [rows, labels] of ``rows`` of token ids, each alone, by transformers' classifier and peft."""
    config = AutoConfig.from_pretrained(package)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32)
    if is_own(package):
        model.score.weight.copy_(load_file(package / "adapter_model.safetensors")["base_model.model.score.weight"])
        model = apply_own(model, package)
    else:
        model = PeftModel.from_pretrained(model, package)
    return torch.cat([model.eval()(input_ids=torch.tensor([list(ids)])).logits for ids in rows])


@torch.no_grad()
def token_logits_by_peft(base: Path, package: Path, rows: list[tuple[int, ...]]) -> list[Tensor]:
    """Logits [length, labels] of each of ``rows`` of token ids, by transformers' model for tokens and peft."""
    config = AutoConfig.from_pretrained(package)
    model: Any = AutoModelForTokenClassification.from_pretrained(base, config=config, dtype=torch.float32)
    if is_own(package):
        saved = load_file(package / "adapter_model.safetensors")
        for name, parameter in model.score.named_parameters():
            parameter.copy_(saved[f"base_model.model.score.{name}"])
        model = apply_own(model, package)
    else:
        model = PeftModel.from_pretrained(model, package)
    return [model.eval()(input_ids=torch.tensor([list(ids)])).logits[0][-len(ids) :] for ids in rows]


@torch.no_grad()
def vectors_by_peft(base: Path, package: Path, rows: list[tuple[int, ...]], pooling: str) -> Tensor:
    """Vectors [rows, hidden_size] of length 1, each text alone, by transformers' backbone and peft."""
    model: Any = AutoModel.from_pretrained(base, dtype=torch.float32)
    model = apply_own(model, package) if is_own(package) else PeftModel.from_pretrained(model, package)
    states = [model.eval()(input_ids=torch.tensor([list(ids)])).last_hidden_state[0] for ids in rows]
    return F.normalize(torch.stack([one[-1] if pooling == "last" else one.mean(0) for one in states]), dim=-1)


def manifest_of(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((package / "hotswap.json").read_text())
    return found
