"""The whole engine against peft alone: chunked prefill, decode, prefix-cache hits, preemption, version pinning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.messages import (
    AdapterFailed,
    AdapterLoaded,
    AdapterUnloaded,
    EngineRequest,
    FinishReason,
    FromEngine,
    RequestOutput,
    SamplingParams,
    StepOutputs,
)
from server.model.runner import load_runner
from server.registry import AdapterKey
from tests import oracle
from tests.factory import VOCAB_SIZE, make_adapter

TOLERANCE = 1e-5


class Driver:
    """An engine stepped by hand that collects what every request was sent."""

    def __init__(self, base: Path, **settings: object) -> None:
        options = {"quantize": "none", "kv_cache_gb": 0.02, "block_size": 4, "max_num_batched_tokens": 24, **settings}
        config = EngineConfig(model=str(base), dtype="float32", threads=1, **options)  # type: ignore[arg-type]
        self.base = base
        self.engine = Engine(load_runner(config), config)
        self.paths: dict[AdapterKey, Path] = {}
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.events: list[FromEngine] = []
        self.cached: dict[str, int] = {}

    def load(self, name: str, path: Path, version: int = 1) -> AdapterKey:
        key = AdapterKey(name, version, f"{name}-{version}")
        self.engine.load_adapter(key, path)
        deadline = time.monotonic() + 60
        while not any(isinstance(e, AdapterLoaded) and e.key == key for e in self.events):
            assert time.monotonic() < deadline, f"{key} was not loaded: {self.events}"
            self.step()
        self.paths[key] = path
        return key

    def submit(self, name: str, prompt: list[int], key: AdapterKey | None, count: int = 8) -> None:
        sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, logprobs=VOCAB_SIZE)
        self.outputs[name] = []
        self.engine.add_request(EngineRequest(request_id=name, prompt_ids=prompt, sampling=sampling, adapter=key))

    def step(self) -> None:
        for message in self.engine.step():
            self.events.append(message)
            if isinstance(message, StepOutputs):
                for output in message.outputs:
                    self.outputs[output.request_id].append(output)
        assert not any(isinstance(e, AdapterFailed) for e in self.events)

    def run(self) -> None:
        for _ in range(2000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine did not finish")

    def tokens(self, name: str) -> list[int]:
        return [t for o in self.outputs[name] for t in o.token_ids]

    def check(self, name: str, prompt: list[int], path: Path | None, count: int = 8) -> None:
        """Every token's log-probabilities over the whole vocabulary against the oracle."""
        tokens = self.tokens(name)
        assert len(tokens) == count
        assert [o.finish_reason for o in self.outputs[name] if o.finish_reason] == [FinishReason.LENGTH]
        want = oracle.logits(self.base, path, prompt + tokens[:-1])[-count:].log_softmax(-1)
        got = torch.full((count, VOCAB_SIZE), float("nan"))
        for i, entry in enumerate(e for o in self.outputs[name] for e in o.logprobs or []):
            ids, values = zip(*entry.top, strict=True)
            got[i, list(ids)] = torch.tensor(values)
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)
        assert tokens == want.argmax(-1).tolist()


@pytest.fixture
def make_driver(tiny_base: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def make(**settings: object) -> Driver:
        drivers.append(Driver(tiny_base, **settings))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.engine.check_integrity()


def prompt_of(seed: int, length: int) -> list[int]:
    tokens: list[int] = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tokens


def test_every_kind_mixed_with_base(make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path]) -> None:
    driver = make_driver()
    keys: list[AdapterKey | None] = [driver.load(name, path) for name, path in tiny_adapters.items()]
    rows = list(enumerate([None, *keys, None, *keys[:2]]))
    for i, key in rows:
        driver.submit(f"r{i}", prompt_of(i, 5 + 3 * i), key)
    driver.run()
    for i, key in rows:
        driver.check(f"r{i}", prompt_of(i, 5 + 3 * i), driver.paths[key] if key else None)


def test_chunked_prefill(make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path]) -> None:
    driver = make_driver(max_num_batched_tokens=5)
    names = ["lora-r8", "prefix-21", "prompt-20"]
    for i, name in enumerate(names):
        driver.submit(name, prompt_of(i, 33), driver.load(name, tiny_adapters[name]), 6)
    driver.submit("base", prompt_of(9, 41), None, 6)
    driver.run()
    for i, name in enumerate(names):
        driver.check(name, prompt_of(i, 33), tiny_adapters[name], 6)
    driver.check("base", prompt_of(9, 41), None, 6)


def test_prefix_cache_hits_and_never_across_adapters(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path]
) -> None:
    driver = make_driver()
    names = ["lora-r8", "lora-r4", "prefix-21", "prompt-7"]
    keys = [driver.load(name, tiny_adapters[name]) for name in names]
    prompt = prompt_of(0, 30)
    for wave in ("first", "second"):
        for name, key in zip(names, keys, strict=True):
            driver.submit(f"{wave}-{name}", prompt, key, 4)
        driver.submit(f"{wave}-base", prompt, None, 4)
        driver.run()
    for wave in ("first", "second"):
        for name in names:
            driver.check(f"{wave}-{name}", prompt, tiny_adapters[name], 4)
        driver.check(f"{wave}-base", prompt, None, 4)
    for name in [*names, "base"]:
        assert driver.outputs[f"first-{name}"][0].cached_tokens == 0, "nothing to share on the first run"
        assert driver.outputs[f"second-{name}"][0].cached_tokens >= 20, f"{name} found nothing in the cache"


def test_preemption(make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path]) -> None:
    # 18 blocks of 4 positions: four sequences of 40 positions and more cannot all stay
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, key and value, fp32
    driver = make_driver(kv_cache_gb=36 * block_bytes / 1e9, prefix_caching=False)
    names = ["lora-r8", "prefix-5", "prompt-7"]
    keys = [driver.load(name, tiny_adapters[name]) for name in names]
    for i, (name, key) in enumerate(zip(names, keys, strict=True)):
        driver.submit(name, prompt_of(i, 20), key, 24)
    driver.submit("base", prompt_of(7, 20), None, 24)
    driver.run()
    assert driver.engine.stats().preemptions > 0, "the cache was not tight enough to preempt"
    for i, name in enumerate(names):
        driver.check(name, prompt_of(i, 20), tiny_adapters[name], 24)
    driver.check("base", prompt_of(7, 20), None, 24)


def test_replacing_and_removing_mid_stream_changes_nothing(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    from peft import LoraConfig

    better = make_adapter(
        tiny_base, tmp_path / "v2", LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"), seed=77
    )
    driver = make_driver()
    old = driver.load("task", tiny_adapters["lora-r8"], 1)
    prompt = prompt_of(3, 12)
    driver.submit("before", prompt, old, 16)
    for _ in range(4):
        driver.step()
    new = driver.load("task", better, 2)
    driver.engine.unload_adapter(old, force=False)
    driver.submit("after", prompt, new, 16)
    driver.run()
    driver.check("before", prompt, tiny_adapters["lora-r8"], 16)
    driver.check("after", prompt, better, 16)
    assert driver.tokens("before") != driver.tokens("after")
    gone = [e.key for e in driver.events if isinstance(e, AdapterUnloaded)]
    assert gone == [old]


def test_cancelling_one_leaves_the_others(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path]
) -> None:
    driver = make_driver()
    key = driver.load("lora-r8", tiny_adapters["lora-r8"])
    for name in ("a", "b", "c"):
        driver.submit(name, prompt_of(ord(name), 15), key, 10)
    for _ in range(3):
        driver.step()
    driver.engine.abort("b")
    driver.run()
    assert [o.finish_reason for o in driver.outputs["b"] if o.finish_reason] == [FinishReason.ABORT]
    for name in ("a", "c"):
        driver.check(name, prompt_of(ord(name), 15), tiny_adapters["lora-r8"], 10)
