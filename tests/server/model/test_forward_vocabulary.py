"""Adapters with a vocabulary of their own, mixed with others: each row has its adapter's tokens, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import ModelRunner, load_runner
from tests import oracle, resized
from tests.bounds import LOGITS
from tests.factory import make_adapter, make_base

pytestmark = pytest.mark.numeric

VOCAB = 320


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


CONFIGS: dict[str, tuple[Any, int]] = {
    "three": (lora(trainable_token_indices=[5, VOCAB, VOCAB + 1, VOCAB + 2]), VOCAB + 3),
    "two": (lora(), VOCAB + 2),
    "many": (lora(modules_to_save=["embed_tokens", "lm_head"]), VOCAB + 70),
    "tokens": (TrainableTokensConfig(token_indices=[VOCAB], task_type="CAUSAL_LM"), VOCAB + 1),
    "fewer": (lora(), VOCAB - 6),
    "adapted": (lora(target_modules=["embed_tokens", "lm_head", "q_proj"]), VOCAB + 4),
    "adapted, fewer": (lora(target_modules=["lm_head"]), VOCAB - 9),
}


@pytest.fixture(scope="module", params=["llama", "untied", "gemma2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options: dict[str, dict[str, Any]] = {
        "llama": {},
        "untied": {"tie_word_embeddings": False},
        "gemma2": {"model_type": "gemma2", "final_logit_softcapping": 5.0},  # logits are changed behind the head
    }
    return make_base(tmp_path_factory.mktemp("bases") / request.param, **options[request.param])


class Bench:
    def __init__(self, base: Path, folder: Path) -> None:
        self.base = base
        config = EngineConfig(
            model=str(base), quantize="none", dtype="float32", kv_cache_gb=0.02, block_size=4, threads=1
        )
        self.runner: ModelRunner = load_runner(config)
        self.paths = {name: resized.save(base, folder / name, *given) for name, given in CONFIGS.items()}
        self.paths["plain"] = make_adapter(base, folder / "plain", lora())
        on_head = lora(target_modules=["lm_head", "embed_tokens"], use_dora=True)
        self.paths["head"] = make_adapter(base, folder / "head", on_head)
        for name, path in self.paths.items():
            self.runner.install(AdapterKey(name, 1, name), self.runner.prepare(path).adapter)

    def step(self, rows: dict[str, list[int]]) -> dict[str, torch.Tensor]:
        """The last logits of one prompt for each name ("base" is the base), computed together."""
        sequences = [
            SequenceInput(
                None if name == "base" else AdapterKey(name, 1, name),
                ids,
                0,
                [8 * i + b for b in range(8)],
                [len(ids) - 1],
            )
            for i, (name, ids) in enumerate(rows.items())
        ]
        return dict(zip(rows, self.runner.execute(ModelInput(sequences)), strict=True))

    def want(self, name: str, ids: list[int]) -> torch.Tensor:
        if name in CONFIGS:
            return resized.logits(self.base, self.paths[name], CONFIGS[name][1], ids)[-1]
        return oracle.logits(self.base, self.paths.get(name), ids)[-1]


def test_mixed_vocabularies(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    rows = {
        "three": [5, VOCAB, 9, VOCAB + 2, 17],
        "base": [5, 9, 17, 33],
        "two": [VOCAB + 1, 8, VOCAB],
        "plain": [64, 64, 9, 7],
        "head": [7, 64, 5],
        "many": [VOCAB + 69, 5, 9, VOCAB],
        "tokens": [5, VOCAB, 9],
        "fewer": [250, 5],
        "adapted": [5, VOCAB + 3, 9, VOCAB],
        "adapted, fewer": [250, 5, 8],
    }
    got = bench.step(rows)
    for name, ids in rows.items():
        want, width = bench.want(name, ids), CONFIGS[name][1] if name in CONFIGS else VOCAB
        if name == "tokens" and base.name == "untied":
            width = VOCAB  # its head has no row for the new token
        assert len(got[name]) == VOCAB + 70
        assert torch.isneginf(got[name][width:]).all()
        torch.testing.assert_close(got[name][:width], want[:width], rtol=0, atol=LOGITS)


def test_rows_are_as_wide_as_the_batch_needs(base: Path, tmp_path: Path) -> None:
    bench = Bench(base, tmp_path)
    assert len(bench.step({"base": [5, 9]})["base"]) == VOCAB
    assert len(bench.step({"base": [5, 9], "two": [VOCAB]})["base"]) == VOCAB + 2
    alone = bench.step({"fewer": [5, 9]})["fewer"]
    assert len(alone) == VOCAB
    assert torch.isneginf(alone[VOCAB - 6 :]).all()
    assert torch.isfinite(alone[: VOCAB - 6]).all()
