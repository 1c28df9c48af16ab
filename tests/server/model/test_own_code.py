"""Decoders that come as code and cannot be paged: every row as transformers and peft compute it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.once import Once
from tests.own_formats import apply_own, is_own
from tests.server.engine.driver import Driver, prompt_of
from tests.server.model.families.own_code import AUTO_CLASSES, MODELS, make_own_code_base
from tests.server.model.families.sweep import TOLERANCE, logprobs, lora

PREFIX = {
    "chatglm": {"num_layers": 2, "num_attention_heads": 2, "token_dim": 32},
    "yuan": {"num_layers": 2, "num_attention_heads": 4, "token_dim": 64},
}
LENGTHS = {"base": 21, "lora": 17, "prefix": 12, "lora again": 4}


def alone(base: Path, adapter: Path | None) -> Any:
    """The base by its own code, as transformers runs it, with ``adapter`` by peft."""
    auto = AutoModelForCausalLM if base.name == "yuan" else AutoModelForSeq2SeqLM
    assert auto.__name__ in AUTO_CLASSES[base.name]
    model = auto.from_pretrained(base, trust_remote_code=True, attn_implementation="eager", dtype=torch.float32)
    if adapter is not None and is_own(adapter):
        return apply_own(model, adapter).eval()
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@torch.no_grad()
def want(base: Path, adapter: Path | None, prompt: list[int], tokens: list[int]) -> Tensor:
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    logits: Tensor = alone(base, adapter)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[0, -len(tokens) :].log_softmax(-1)


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, once: Once) -> Path:
    kind: str = request.param
    return once.make(f"own-code/{kind}", lambda folder: make_own_code_base(folder / kind, kind)) / kind


def save(base: Path, path: Path, config: Any, *, std: float) -> Path:
    torch.manual_seed(1)
    trained = get_peft_model(alone(base, None), config)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    trained.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def packages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    prefix = PrefixTuningConfig(
        num_virtual_tokens=6, task_type="CAUSAL_LM", num_transformer_submodules=1, **PREFIX[base.name]
    )
    return {
        "lora": save(base, root / "lora", lora(target_modules=TARGETS[base.name]), std=0.1),
        "prefix": save(base, root / "prefix", prefix, std=0.3),
    }


TARGETS = {"chatglm": ["query_key_value", "dense", "dense_h_to_4h", "output_layer"], "yuan": "all-linear"}


@pytest.mark.parametrize("recomputes", [False, True])
def test_every_row_is_as_alone(
    base: Path, packages: dict[str, Path], recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(base, trust_remote_code=True, max_num_batched_tokens=11)
    forward: Any = driver.engine.runner._forward  # type: ignore[attr-defined]
    assert forward._positions is not None
    if recomputes:
        monkeypatch.setattr(forward, "_positions", None)
    keys = {name: driver.load(name, path) for name, path in packages.items()}
    for wave in ("first", "second"):
        for i, (name, length) in enumerate(LENGTHS.items()):
            driver.submit(f"{wave} {name}", prompt_of(i, length), keys.get(name.split()[0]), 4)
        driver.run()
    driver.engine.check_integrity()
    assert driver.outputs["second base"][0].cached_tokens > 0
    for i, (name, length) in enumerate(LENGTHS.items()):
        for wave in ("first", "second"):
            tokens = driver.tokens(f"{wave} {name}")
            expected = want(base, packages.get(name.split()[0]), prompt_of(i, length), tokens)
            assert tokens == expected.argmax(-1).tolist(), (wave, name)
            assert float((logprobs(driver, f"{wave} {name}") - expected).abs().max()) < TOLERANCE, (wave, name)
