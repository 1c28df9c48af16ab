"""What the tests of engine clients share: requests, whole answers, and waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.engine.ipc.client import EngineClient
from server.engine.messages import EngineRequest, FinishReason, SamplingParams

DEADLINE = 120.0
PROMPT = [10, 200, 33, 44, 99, 7, 150, 61]  # base and every adapter of the tiny base continue it differently


def config_for(base: Path, **settings: Any) -> EngineConfig:
    """A small engine on ``base``."""
    defaults: dict[str, Any] = {
        "quantize": "none",
        "dtype": "float32",
        "device": "cpu",
        "kv_cache_gb": 0.01,
        "threads": 1,
    }
    return EngineConfig(model=str(base), **{**defaults, **settings})


def key(name: str, version: int = 1) -> AdapterKey:
    """A key whose content does not matter."""
    return AdapterKey(name, version, f"{version:064x}")


def request(request_id: str, adapter: AdapterKey | None = None, *, max_tokens: int = 16) -> EngineRequest:
    """A greedy request of a fixed length."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, speculation=False)
    return EngineRequest(request_id=request_id, prompt_ids=PROMPT, adapter=adapter, sampling=sampling)


async def answer(
    client: EngineClient, request_id: str, adapter: AdapterKey | None = None, *, max_tokens: int = 16
) -> list[int]:
    """The tokens of a whole answer, which must end by its length."""
    outputs = [output async for output in client.submit(request(request_id, adapter, max_tokens=max_tokens))]
    assert outputs[-1].finish_reason is FinishReason.LENGTH, outputs[-1].error
    return [token for output in outputs for token in output.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)
