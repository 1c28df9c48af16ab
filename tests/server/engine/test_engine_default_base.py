"""The default base, quantized, through the whole engine: the same greedy tokens as peft over the same weights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from bases.errors import BaseModelError
from bases.finding import DEFAULT_BASE, resolve_base
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.messages import AdapterLoaded, EngineRequest, SamplingParams, StepOutputs
from server.model.model_runner import load_runner
from tests import oracle
from tests.factory import make_adapter
from tests.server.keys import key_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TEXTS = [
    "Give me three facts about the sea.",
    "What is the capital of France, and what is it known for?",
    "Write a short letter to a friend who moved to another town last spring.",
]
COUNT = 24


@pytest.fixture(scope="module")
def base() -> Path:
    try:
        return resolve_base(DEFAULT_BASE)
    except BaseModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

    configs = {
        "lora": (LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"), 0.02),
        "lora-small": (LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"), 0.05),
        "prefix": (PrefixTuningConfig(num_virtual_tokens=21, task_type="CAUSAL_LM"), 0.3),
        "prompt": (PromptTuningConfig(num_virtual_tokens=9, task_type="CAUSAL_LM"), 0.1),
    }
    root = tmp_path_factory.mktemp("real")
    return {
        name: make_adapter(base, root / name, config, seed=i, std=std)
        for i, (name, (config, std)) in enumerate(configs.items())
    }


def prompts(base: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    ids: list[list[int]] = []
    for text in TEXTS:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        ids.append(tokenizer(chat, add_special_tokens=False).input_ids)
    return ids


@pytest.mark.parametrize("quantize", ["nf4", "int8", "none"])
def test_mixed_greedy_tokens_equal_pefts(base: Path, adapters: dict[str, Path], quantize: str) -> None:
    torch.set_num_threads(2)
    config = EngineConfig(model=str(base), quantize=quantize, dtype="float32", kv_cache_gb=0.3, threads=2)
    engine = Engine(load_runner(config), config)
    keys = {name: key_of(name, package) for name, package in adapters.items()}
    for adapter, key in keys.items():
        engine.load_adapter(key, adapters[adapter])
    tokens: dict[str, list[int]] = {}
    loaded = 0
    deadline = time.monotonic() + 120
    while loaded < len(keys):
        assert time.monotonic() < deadline
        loaded += sum(isinstance(m, AdapterLoaded) for m in engine.step())
    asked = prompts(base)
    for name in [None, *keys]:
        for i, prompt in enumerate(asked):
            sampling = SamplingParams(max_tokens=COUNT, temperature=0.0, ignore_eos=True)
            request = EngineRequest(
                request_id=f"{name}/{i}", prompt_ids=prompt, sampling=sampling, adapter=keys[name] if name else None
            )
            tokens[request.request_id] = []
            engine.add_request(request)
    while engine.has_work:
        for message in engine.step():
            if isinstance(message, StepOutputs):
                for output in message.outputs:
                    tokens[output.request_id] += output.token_ids
    engine.check_integrity()
    for name in [None, *keys]:
        for i, prompt in enumerate(asked):
            want = oracle.greedy_cached(base, adapters[name] if name else None, prompt, COUNT, quantize)
            assert tokens[f"{name}/{i}"] == want, f"{name}, prompt {i}, {quantize}"
