"""Runs of tasks that read: learned, and loaded by transformers and peft to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForSequenceClassification

from tests.trainer.every_method import METHODS, WEAK, others_slow
from tests.trainer.pooling.support import class_rows, held_back, logits_by_peft, manifest_of
from tests.trainer.support import WORDS, make_config
from trainer.config.loading import load_config
from trainer.run import train

READING = [name for name in METHODS if name != "lora-saved"]


@pytest.mark.parametrize("method", others_slow(READING))
def test_a_classifier_is_what_transformers_and_peft_load(tiny_base: Path, tmp_path: Path, method: str) -> None:
    config = make_config(
        tmp_path, tiny_base, "task=classification", *METHODS[method], "max_steps=30", rows=class_rows()
    )
    result = train(config)
    assert result.package == tmp_path / "run" / "adapter"
    assert result.metrics["accuracy"] > (0.3 if method in WEAK else 0.5)  # by chance a sixth
    pooled = manifest_of(result.package)["pooled"]
    assert pooled["labels"] == sorted(WORDS)
    assert pooled["problem_type"] == "single_label_classification"
    rows = list(held_back(load_config(result.output / "config.yaml", [], {}), tiny_base))
    logits = logits_by_peft(tiny_base, result.package, [row.texts[0] for row in rows])
    wanted = torch.tensor([row.classes[0] for row in rows])
    assert float(F.cross_entropy(logits, wanted)) == pytest.approx(result.metrics["validation_loss"], abs=2e-5)
    assert float((logits.argmax(-1) == wanted).float().mean()) == pytest.approx(result.metrics["accuracy"])


def test_the_auto_class_of_peft_loads_it(tiny_base: Path, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, tiny_base, "task=classification", *METHODS["lora"], rows=class_rows()))
    assert result.package
    settings = json.loads((result.package / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    (result.package / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tiny_base)})
    )
    model = AutoPeftModelForSequenceClassification.from_pretrained(str(result.package), num_labels=len(WORDS))
    ids = [(260, 270, 280), (261, 262)]
    ours = logits_by_peft(tiny_base, result.package, ids)
    theirs = torch.cat([model(input_ids=torch.tensor([list(one)])).logits for one in ids])
    assert torch.allclose(ours, theirs, atol=1e-5)
