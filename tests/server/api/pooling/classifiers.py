"""Adapters with a head of their own, saved by peft, and what transformers and peft alone make of a text with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.factory import load


def _plain(base: Path, of_tokens: bool, num_labels: int) -> Any:
    kind: Any = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
    torch.manual_seed(0)
    return kind.from_pretrained(base, num_labels=num_labels, dtype=torch.float32, attn_implementation="eager").eval()


def make_classifier(
    base: Path, path: Path, config: Any, num_labels: int, *, seed: int = 1, beside: dict[str, Any] | None = None
) -> Path:
    """Save a random adapter of ``config`` (task_type SEQ_CLS or TOKEN_CLS), ``beside`` it a config.json."""
    model = get_peft_model(_plain(base, config.task_type == "TOKEN_CLS", num_labels), config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    if beside is not None:
        (path / "config.json").write_text(json.dumps(beside))
    return path


@lru_cache(maxsize=32)
def plain_classifier(base: Path, path: Path, num_labels: int) -> Any:
    """transformers' model with the adapter in ``path``, by peft."""
    of_tokens = json.loads((path / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    return PeftModel.from_pretrained(_plain(base, of_tokens, num_labels), path).eval()


@torch.no_grad()
def outputs(base: Path, path: Path, num_labels: int, token_ids: Sequence[int]) -> Tensor:
    """Logits of one text alone: [num_labels], or of every token [length, num_labels]."""
    out: Tensor = plain_classifier(base, path, num_labels)(input_ids=torch.tensor([list(token_ids)])).logits[0]
    return out if out.dim() == 1 else out[-len(token_ids) :]


@torch.no_grad()
def weighted_outputs(
    base: Path, headed: tuple[Path, float], others: Sequence[tuple[Path, float]], num_labels: int, ids: Sequence[int]
) -> Tensor:
    """As ``outputs`` of one text, where also adapters of no head act, each as often as its weight says.

    By how far peft's merging of each moves every weight.
    """
    whole = _plain(base, False, num_labels)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for adapter, weight in (headed, *others):
        model: Any = _plain(base, False, num_labels) if adapter == headed[0] else load(base)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
        for name, tensor in whole.state_dict().items():
            if name == "score.weight":
                tensor.copy_(merged.get(name, tensor))
            else:
                tensor.add_(merged[name] - before[name], alpha=weight)
    out: Tensor = whole(input_ids=torch.tensor([list(ids)])).logits[0]
    return out


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": lambda logits: logits.sigmoid(),
    "": lambda logits: logits,
}
