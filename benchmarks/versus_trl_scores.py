"""Scores one adapter of ``benchmarks.versus_trl`` with transformers and peft alone: SIDE SETTINGS OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BATCH = 8
_SLACK = 8  # tokens an answer may be longer than the one wanted


def main() -> None:
    """Leave OUTPUT/scores.json."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings, output = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3])
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["base"], padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=getattr(torch, settings["dtype"]))
    model = PeftModel.from_pretrained(base, output / "adapter").eval()
    rows = [json.loads(line) for line in Path(settings["held"]).read_text(encoding="utf-8").splitlines()]
    scores = {
        "validation_loss": validation_loss(model, tokenizer, rows),
        "exact_match": exact_match(model, tokenizer, rows[: settings["answers"]]),
    }
    (output / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


@torch.no_grad()
def validation_loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Mean cross entropy of all tokens of the answers, each with its end token."""
    total, count = 0.0, 0
    for row in rows:
        prompt = _ids(tokenizer, _prompt(tokenizer, row))
        answer = [*_ids(tokenizer, row["response"]), tokenizer.eos_token_id]
        logits: Tensor = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(F.cross_entropy(logits.float(), torch.tensor(answer), reduction="sum"))
        count += len(answer)
    return round(total / count, 5)


@torch.no_grad()
def exact_match(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Share of rows whose greedy answer is the response, but for white space around it."""
    hits = 0
    for at in range(0, len(rows), _BATCH):
        batch = rows[at : at + _BATCH]
        inputs = tokenizer(
            [_prompt(tokenizer, row) for row in batch], add_special_tokens=False, padding=True, return_tensors="pt"
        )
        limit = max(len(_ids(tokenizer, row["response"])) for row in batch) + _SLACK
        out = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        hits += sum(text.strip() == row["response"].strip() for text, row in zip(texts, batch, strict=True))
    return round(hits / len(rows), 4)


def _prompt(tokenizer: Any, row: dict[str, str]) -> str:
    messages = [{"role": "user", "content": row["prompt"]}]
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


if __name__ == "__main__":
    main()
