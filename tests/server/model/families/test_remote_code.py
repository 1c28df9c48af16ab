"""Models that come as code: run only when the operator says so, never after a question on stdin."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.model_runner import load_runner
from tests.factory import make_tokenizer
from tests.server.engine.driver import Driver, prompt_of
from tests.server.model.families.custom_code.configuration_tiny_glm import TinyGlmConfig
from tests.server.model.families.custom_code.modeling_tiny_glm import TinyGlmForCausalLM
from tests.server.model.families.sweep import TOLERANCE, logprobs, lora

CODE = Path(__file__).parent / "custom_code"
AUTO_MAP = {
    "AutoConfig": "configuration_tiny_glm.TinyGlmConfig",
    "AutoModelForCausalLM": "modeling_tiny_glm.TinyGlmForCausalLM",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as one finds it on the hub: weights, a config with ``auto_map``, and code."""
    path = tmp_path_factory.mktemp("remote") / "tiny_glm"
    torch.manual_seed(0)
    model = TinyGlmForCausalLM(TinyGlmConfig(eos_token_id=258))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.12)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    for name in ("configuration_tiny_glm.py", "modeling_tiny_glm.py"):
        shutil.copy(CODE / name, path / name)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}))
    return path


@pytest.fixture(autouse=True)
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("a question was asked on stdin")

    monkeypatch.setattr("builtins.input", ask)


def alone(base: Path, adapter: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, attn_implementation="eager")
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


def test_refused_without_the_flag(base: Path) -> None:
    loaded = set(sys.modules)
    with pytest.raises(EngineStartError, match=r"comes as code beside its weights.*--trust-remote-code"):
        load_runner(EngineConfig(model=str(base), quantize="none", dtype="float32"))
    assert not any("modeling_tiny_glm" in name for name in set(sys.modules) - loaded), "the code ran"


@torch.no_grad()
def test_lora_and_base_with_the_flag(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = get_peft_model(alone(base, None), lora())
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trained.save_pretrained(tmp_path / "lora")
    driver = Driver(base, trust_remote_code=True, max_num_batched_tokens=11)
    key = driver.load("lora", tmp_path / "lora")
    rows = {"base": (None, 21), "lora": (key, 17), "lora again": (key, 4)}
    for name, (row_key, length) in rows.items():
        driver.submit(name, prompt_of(length, length), row_key, 4)
    driver.run()
    for name, (row_key, length) in rows.items():
        tokens = driver.tokens(name)
        model = alone(base, tmp_path / "lora" if row_key else None)
        ids = torch.tensor([prompt_of(length, length) + tokens[:-1]])
        want = model(input_ids=ids).logits[0, -4:].log_softmax(-1)
        assert float((logprobs(driver, name) - want).abs().max()) < TOLERANCE
