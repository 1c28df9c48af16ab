"""The methods of a configuration: their learning rates, and which of them train the base's own weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.config.test_loading import SMALLEST
from trainer.config.loading import load_config
from trainer.config.methods import METHODS, FreezeMethod, FullMethod, LnTuningMethod, LoraMethod, trains_weights


@pytest.mark.parametrize(
    ("kind", "rate"), [("lora", 5e-4), ("prefix", 3e-3), ("{type: prefix, projection: false}", 2e-2), ("prompt", 2e-2)]
)
def test_each_method_has_its_own_learning_rate(tmp_path: Path, kind: str, rate: float) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SMALLEST + f"method: {kind}\n", encoding="utf-8")
    assert load_config(path, (), {}).training.learning_rate == rate


def test_methods_are_known_by_their_kinds() -> None:
    assert all(kind == struct.KIND for kind, struct in METHODS.items())


def test_methods_that_train_the_bases_weights_are_told_from_adapters() -> None:
    base = {FreezeMethod, FullMethod, LnTuningMethod}
    assert {struct for struct in METHODS.values() if trains_weights(struct())} == base
    assert trains_weights(LoraMethod(modules_to_save=["lm_head"]))
    assert trains_weights(LoraMethod(bias="all"))
