"""Small preference data that a tiny model learns, and DPO's loss worked out by hand on transformers' own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests import oracle
from tests.trainer.support import WORDS, make_config
from trainer.config.schema import TrainConfig

Pairs = list[tuple[list[dict[str, str]], str, str]]  # messages before, chosen, rejected


def pair_rows(count: int = 40) -> list[dict[str, str]]:
    """The colour's first letter twice is preferred over another letter."""
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    return [
        {"prompt": f"{'very ' * (i % 3)}{word}", "chosen": word[0] * 2, "rejected": "xyz"[i % 3] * (1 + i % 4)}
        for i, word in enumerate(words)
    ]


def judged_rows(count: int = 40) -> list[dict[str, Any]]:
    """The same as single answers, the good ones first."""
    pairs = pair_rows(count // 2)
    return [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in pairs] + [
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in pairs
    ]


def preference_config(folder: Path, base: Path, kind: str, *overrides: str, rows: list[Any]) -> TrainConfig:
    """A configuration of ``kind`` preference training on ``rows``."""
    return make_config(folder, base, f"preference={kind}", *overrides, rows=rows)


def answer_log_prob(base: Path, package: Path | None, before: list[dict[str, str]], answer: str) -> float:
    """The log-probability of ``answer`` and its end token, from whole logits; by the base alone without a package."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    after = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    logits = oracle.logits(base, package, [*ids, *after])
    scores = logits[len(ids) - 1 : -1].double().log_softmax(-1)
    return float(scores.gather(1, torch.tensor(after)[:, None]).sum())
