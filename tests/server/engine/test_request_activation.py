"""Activated LoRA: the base up to the invocation, the adapter from there on, cached blocks shared up to there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora.variants import calculate_alora_offsets

from server.adapter_key import AdapterKey
from server.engine.block_manager import extend_hashes
from server.engine.messages import EngineRequest, FinishReason, SamplingParams
from server.engine.request import activation_start
from server.model.inputs import NEVER
from tests import oracle
from tests.factory import VOCAB_SIZE, make_adapter
from tests.server.engine.driver import TOLERANCE, Driver, prompt_of

INVOCATION, OTHER = [301, 302, 303], [305, 306]  # tokens that prompts have nowhere else
Make = Callable[..., Driver]


@pytest.fixture(scope="module")
def activated(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("activated")

    def save(name: str, tokens: list[int], seed: int, **options: Any) -> Path:
        config = LoraConfig(r=4, alora_invocation_tokens=tokens, task_type="CAUSAL_LM", **options)
        return make_adapter(tiny_base, root / name, config, seed=seed)

    return {
        "one": save("one", INVOCATION, 1, target_modules=["q_proj", "v_proj", "down_proj"], lora_bias=True),
        "two": save("two", OTHER, 2, target_modules=["k_proj", "lm_head"]),
    }


def check(driver: Driver, name: str, prompt: list[int], path: Path, count: int) -> None:
    """Every token's log-probabilities against PEFT."""
    tokens = driver.tokens(name)
    assert [o.finish_reason for o in driver.outputs[name] if o.finish_reason] == [FinishReason.LENGTH]
    want = oracle.activated_logits(driver.base, path, prompt, prompt + tokens[:-1])[-count:].log_softmax(-1)
    got = torch.full((count, VOCAB_SIZE), float("nan"))
    for i, entry in enumerate(e for o in driver.outputs[name] for e in o.logprobs or []):
        ids, values = zip(*entry.top, strict=True)
        got[i, list(ids)] = torch.tensor(values)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


def invoked(seed: int, before: int, after: int, tokens: list[int] = INVOCATION) -> list[int]:
    return [*prompt_of(seed, before), *tokens, *prompt_of(seed + 50, after)]


@given(st.lists(st.integers(0, 3), max_size=14), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_the_start_is_where_peft_finds_it(prompt: list[int], tokens: list[int]) -> None:
    config: Any = {"a": LoraConfig(alora_invocation_tokens=tokens, task_type="CAUSAL_LM")}
    (offset,) = calculate_alora_offsets(config, "a", torch.tensor([prompt], dtype=torch.long))
    assert activation_start(prompt, tokens) == (NEVER if offset is None else len(prompt) - offset)
    assert activation_start(prompt, ()) == 0


def test_hashes_are_shared_up_to_the_switch() -> None:
    def hashes(switch: tuple[int, bytes] | None, steps: int = 16) -> list[bytes]:
        found: list[bytes] = []
        for end in range(steps, 17, steps):
            extend_hashes(found, list(range(end)), 4, b"base", switch)
        return found

    base = hashes(None)
    for position in range(16):
        other = hashes((position, b"a"))
        assert [a == b for a, b in zip(base, other, strict=True)] == [i < position // 4 for i in range(4)]
        assert other == hashes((position, b"a"), steps=1)
    assert len({hashes((position, bytes([position])))[-1] for position in range(16)}) == 16
    assert hashes((NEVER, b"a")) == base


@pytest.mark.parametrize("budget", [24, 5])
def test_mixed_with_others(
    make_driver: Make, activated: dict[str, Path], tiny_adapters: Mapping[str, Path], budget: int
) -> None:
    driver = make_driver(max_num_batched_tokens=budget)
    one, two = (driver.load(name, path) for name, path in activated.items())
    lora = driver.load("lora", tiny_adapters["lora-r4"])
    rows: dict[str, tuple[AdapterKey, list[int], Path]] = {
        "one": (one, invoked(1, 9, 4), activated["one"]),
        "one at the end": (one, invoked(2, 13, 0), activated["one"]),
        "one at the start": (one, invoked(3, 0, 9), activated["one"]),
        "one twice": (one, [*invoked(4, 6, 2), *invoked(5, 1, 3)], activated["one"]),
        "one not invoked": (one, prompt_of(6, 11), activated["one"]),
        "one, half an invocation": (one, [*prompt_of(7, 5), *INVOCATION[:2]], activated["one"]),
        "two": (two, invoked(8, 10, 3, OTHER), activated["two"]),
        "two, invoked as one": (two, invoked(9, 3, 3), activated["two"]),
    }
    for name, (key, prompt, _) in rows.items():
        driver.submit(name, prompt, key, 5)
    driver.submit("lora", invoked(1, 9, 4), lora, 5)
    driver.submit("base", invoked(1, 9, 4), None, 5)
    driver.run()
    for name, (_, prompt, path) in rows.items():
        check(driver, name, prompt, path, 5)
    driver.check("lora", invoked(1, 9, 4), tiny_adapters["lora-r4"], 5)
    driver.check("base", invoked(1, 9, 4), None, 5)
    driver.check("one not invoked", prompt_of(6, 11), None, 5)  # the base's own answer


def test_blocks_are_shared_with_the_base_both_ways(make_driver: Make, activated: dict[str, Path]) -> None:
    driver = make_driver()
    one, two = (driver.load(name, path) for name, path in activated.items())
    shared = prompt_of(11, 22)  # 5 whole blocks, and half of one that the invocation begins in
    waves: list[tuple[str, AdapterKey | None, list[int], int]] = [
        ("base first", None, [*shared, 7], 0),
        ("one", one, [*shared, *INVOCATION, 5, 9], 20),
        ("two", two, [*shared, *OTHER, 5, 9, 8], 20),
        ("one again", one, [*shared, *INVOCATION, 5, 9], 24),
        ("base sees nothing of them", None, [*shared, *INVOCATION, 5, 9], 20),
        ("one not invoked", one, [*shared, *INVOCATION[:2], 5, 9], 24),  # what the base has just computed
    ]
    for name, key, prompt, cached in waves:
        driver.submit(name, prompt, key, 4)
        driver.run()
        assert driver.outputs[name][0].cached_tokens == cached, name
    for name, key, prompt, _ in waves:
        if key is None:
            driver.check(name, prompt, None, 4)
        else:
            check(driver, name, prompt, activated["one" if key == one else "two"], 4)


def test_blocks_that_an_activated_request_left_serve_the_base(make_driver: Make, activated: dict[str, Path]) -> None:
    driver = make_driver()
    one = driver.load("one", activated["one"])
    prompt = invoked(21, 17, 6)
    driver.submit("first", prompt, one, 4)
    driver.run()
    driver.submit("base", prompt, None, 4)
    driver.submit("later", [*prompt, *INVOCATION, 3], one, 4)  # invoked again, so all of the first is the base's
    driver.run()
    assert driver.outputs["base"][0].cached_tokens == 16
    assert driver.outputs["later"][0].cached_tokens == 16
    driver.check("base", prompt, None, 4)
    check(driver, "first", prompt, activated["one"], 4)
    check(driver, "later", [*prompt, *INVOCATION, 3], activated["one"], 4)


def test_preemption(make_driver: Make, activated: dict[str, Path]) -> None:
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, key and value, fp32
    driver = make_driver(kv_cache_gb=20 * block_bytes / 1e9)  # blocks: three of 5 grow to 10 each
    one, two = (driver.load(name, path) for name, path in activated.items())
    rows = {"a": (one, invoked(31, 14, 3)), "b": (two, invoked(32, 15, 3, OTHER)), "c": (one, invoked(33, 9, 9))}
    for name, (key, prompt) in rows.items():
        driver.submit(name, prompt, key, 20)
    driver.run()
    assert driver.engine.stats().preemptions > 0, "the cache was not tight enough to preempt"
    for name, (key, prompt) in rows.items():
        check(driver, name, prompt, activated["one" if key == one else "two"], 20)


def test_prompt_logprobs_follow_the_activation(make_driver: Make, activated: dict[str, Path]) -> None:
    driver = make_driver(max_num_batched_tokens=6)
    one, prompt = driver.load("two", activated["two"]), invoked(41, 8, 5, OTHER)
    want = oracle.activated_logits(driver.base, activated["two"], prompt, prompt).log_softmax(-1)
    base = oracle.logits(driver.base, None, prompt).log_softmax(-1)
    assert not torch.allclose(want[8:], base[8:])
    torch.testing.assert_close(want[:8], base[:8], rtol=0, atol=TOLERANCE)
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, prompt_logprobs=3)
    driver.outputs["p"] = []
    driver.engine.add_request(EngineRequest(request_id="p", prompt_ids=prompt, sampling=sampling, adapter=one))
    driver.run()
    parts = [output.prompt_logprobs or [] for output in driver.outputs["p"]]
    got = [entry for part in parts for entry in part if entry is not None]
    assert len(got) == len(prompt) - 1
    for row, entry in zip(want, got, strict=False):
        assert len(entry.top) >= 3
        assert all(abs(value - float(row[token])) < TOLERANCE for token, value in entry.top)
