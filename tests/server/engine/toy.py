"""Adapters of the toy runner, and what a greedy answer must be."""

from __future__ import annotations

import random
from pathlib import Path

from server.adapter_key import AdapterKey
from server.engine.messages import AdapterLoaded, FinishReason
from tests.server.engine.harness import Harness
from tests.server.engine.toy_runner import ToyRunner, make_package

LORA, PREFIX, PROMPT = (AdapterKey(name, 1, name * 8) for name in ("lora", "prefix", "prompt"))
KEYS = [None, LORA, PREFIX, PROMPT]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [random.Random(seed * 1000 + length).randrange(60) for _ in range(length)]


def load_all(harness: Harness, folder: Path, *, num_virtual_tokens: int = 6) -> None:
    for seed, key in enumerate((LORA, PREFIX, PROMPT)):
        package = make_package(folder / key.name, key.name, seed=seed, num_virtual_tokens=num_virtual_tokens)
        assert isinstance(harness.load(key, package), AdapterLoaded)


def expect_greedy(
    harness: Harness, runner: ToyRunner, wanted: dict[str, tuple[AdapterKey | None, list[int], int]]
) -> None:
    results = harness.run()
    for request_id, case in wanted.items():
        assert results[request_id].error is None
        assert results[request_id].token_ids == runner.greedy(*case), request_id
        assert results[request_id].finish_reason is FinishReason.LENGTH
