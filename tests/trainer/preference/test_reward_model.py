"""Reward models: learned, and loaded by transformers and peft to the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adapters.package.reading import read_package
from tests.trainer.every_method import METHODS
from tests.trainer.preference.support import pair_rows, preference_config
from trainer.errors import ConfigError
from trainer.run import train


def test_a_reward_model_is_what_transformers_and_peft_load(tiny_base: Path, tmp_path: Path) -> None:
    rows = pair_rows()
    options = [*METHODS["lora"], "max_steps=30", "center_rewards=0.01"]
    result = train(preference_config(tmp_path, tiny_base, "reward", *options, rows=rows))
    assert result.metrics["reward_accuracy"] > 0.9
    assert result.package == tmp_path / "run" / "reward_model"
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, result.package).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base)

    def score(row: dict[str, str], answer: str) -> float:
        messages = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + answer
        ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    from trainer.config.loading import load_config
    from trainer.preference.preference_data import PreferenceEncoder, load_preferences

    config = load_config(result.output / "config.yaml", [], {})
    assert config.preference is not None
    assert config.preference.KIND == "reward"
    tokens = PreferenceEncoder(config.data, config.preference.columns, tokenizer, [tokenizer.eos_token_id])  # type: ignore[union-attr]
    held = load_preferences(config.data, tokens.pairs, config.training.seed).validation
    texts = [tokenizer.decode(pair.chosen, skip_special_tokens=True) for pair in held]
    prompts = [tokenizer.decode(pair.prompt).split("\n")[1].removesuffix("<|im_end|>") for pair in held]
    by_prompt = {row["prompt"] + row["chosen"]: row for row in rows}
    margins = []
    for prompt, chosen, pair in zip(prompts, texts, held, strict=True):
        rejected = tokenizer.decode(pair.rejected, skip_special_tokens=True)
        row = by_prompt[prompt + chosen]
        margins.append(score(row, chosen) - score(row, rejected))
    assert sum(margins) / len(margins) == pytest.approx(result.metrics["reward_margin"], abs=1e-4)
    assert read_package(result.package).config.task_type == "SEQ_CLS"


def test_other_methods_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.type: reward models are trained with lora"):
        preference_config(tmp_path, tiny_base, "reward", *METHODS["prefix"], rows=pair_rows())
