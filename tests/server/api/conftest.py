"""One base, its adapters and one open server for all tests of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

from tests.factory import make_adapter, make_base
from tests.server.api.support import BASE, MAX_LEN
from tests.server.live import Live, live_server


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with room for long outputs."""
    return make_base(tmp_path_factory.mktemp("api") / BASE, max_position_embeddings=MAX_LEN)


@pytest.fixture(scope="session")
def packages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter packages by name."""
    root = tmp_path_factory.mktemp("packages")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    configs = {
        "lora": lora,
        "lora-2": lora,
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }
    return {
        name: make_adapter(base, root / name, config, seed=i, std=0.3)
        for i, (name, config) in enumerate(configs.items())
    }


@pytest.fixture(scope="session")
def server(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server open to this machine, with the adapters "lora", "prefix" and "prompt"."""
    adapters = tuple((name, str(packages[name])) for name in ("lora", "prefix", "prompt"))
    with live_server(base, tmp_path_factory.mktemp("data"), adapters=adapters) as live:
        yield live
        live.wait_idle()


@pytest.fixture(scope="session")
def client(server: Live) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made
