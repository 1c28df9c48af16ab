"""What a soak compares with: the same prompts answered by the base and by each adapter, in peft alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tests import oracle

TOKENS, PROMPTS = 12, 4
MARGIN = 1e-3  # between the best two logits: no shape of a batch moves logits of fp32 that far


def write_references(folder: Path, base: Path, adapters: Mapping[str, Path]) -> Path:
    """Write ``folder/references.json``; returns ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers: dict[str | None, list[dict[str, Any]]] = {name: [] for name in (None, *adapters)}
    for prompt in _prompts():
        texts = {name: _answer(base, adapters.get(name or ""), prompt, tokenizer) for name in answers}
        if all(text is not None for text in texts.values()):
            for name, text in texts.items():
                answers[name].append({"prompt": prompt, "max_tokens": TOKENS, "text": text})
        if len(answers[None]) == PROMPTS:
            break
    assert len(answers[None]) == PROMPTS, "too few prompts have clear answers"
    packages = {name: {"path": str(path), "answers": answers[name]} for name, path in adapters.items()}
    folder.mkdir(parents=True, exist_ok=True)
    found = {"model": str(base), "answers": answers[None], "packages": packages}
    (folder / "references.json").write_text(json.dumps(found))
    return folder


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 40, (50,), generator=generator).tolist()
    return [torch.randint(32, 127, (length,), generator=generator).tolist() for length in lengths]


def _answer(base: Path, adapter: Path | None, prompt: list[int], tokenizer: Any) -> str | None:
    """The greedy text; None when it is not clear: two tokens nearly as good, or one that has no text of its own."""
    tokens = list(prompt)
    for _ in range(TOKENS):
        best = oracle.logits(base, adapter, tokens)[-1].topk(2)
        if best.values[0] - best.values[1] < MARGIN:
            return None
        tokens.append(int(best.indices[0]))
    new = tokens[len(prompt) :]
    return None if set(new) & set(tokenizer.all_special_ids) else str(tokenizer.decode(new))
