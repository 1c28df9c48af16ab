"""A real server, packages whose answers differ, and rows that one of them answers right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import LoraConfig

from tests.factory import make_adapter
from tests.server.live import Live, live_server
from tests.trainer.support import write_jsonl
from trainer.serving.client import AdminClient

ADMIN, INFERENCE = "root", "sk"
MAX_TOKENS = 6


@pytest.fixture
def server(tiny_base: Path, tmp_path: Path) -> Iterator[Live]:
    """A server that wants keys, its own for each test."""
    with live_server(
        tiny_base, tmp_path / "data", admin_key=ADMIN, api_key=INFERENCE, engine={"dtype": "float32"}
    ) as live:
        yield live
        live.wait_idle()


@pytest.fixture
def admin(server: Live) -> Iterator[AdminClient]:
    with AdminClient(server.url, ADMIN) as client:
        yield client


@pytest.fixture(scope="session")
def packages(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages that answer differently: ``right``, ``wrong`` and ``other``."""
    root = tmp_path_factory.mktemp("gated")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    names = ("right", "wrong", "other")
    return {name: make_adapter(tiny_base, root / name, config, seed=i, std=0.5) for i, name in enumerate(names)}


@pytest.fixture(scope="session")
def rows_file(tiny_base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose references are what ``right`` answers."""
    folder = tmp_path_factory.mktemp("rows")
    prompts = [f"{word} {i}" for i in range(8) for word in ("red", "blue", "green")]
    with live_server(
        tiny_base, folder / "data", adapters=(("right", str(packages["right"])),), engine={"dtype": "float32"}
    ) as live:
        rows = [{"prompt": prompt, "response": answer(live, "right", prompt)} for prompt in prompts]
    return write_jsonl(folder / "rows.jsonl", rows)


def answer(server: Live, model: str, prompt: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    with server.http(authorization=f"Bearer {INFERENCE}") as http:
        response = http.post("/v1/chat/completions", json={**body, "max_tokens": MAX_TOKENS})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])
