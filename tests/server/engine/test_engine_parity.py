"""The whole engine against peft alone: chunked prefill, decode, prefix-cache hits, preemption, version pinning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from server.adapter_key import AdapterKey
from server.engine.messages import (
    AdapterUnloaded,
    FinishReason,
)
from server.model.inputs import ModelInput
from server.model.outputs import ModelOutput
from tests.factory import make_adapter
from tests.server.engine.driver import Driver, prompt_of


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
    # 28 blocks of 4 positions: four prompts just fit, but not the 11 to 13 blocks that each of them grows to
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, key and value, fp32
    driver = make_driver(kv_cache_gb=28 * block_bytes / 1e9, prefix_caching=False)
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


def test_a_storm_of_preemptions_changes_no_answer(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path]
) -> None:
    """Many long requests in a cache that holds two or three of them; every third draws its tokens at random."""
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, key and value, fp32
    names = ["lora-r8", "prefix-5", "prompt-7", None]
    rows = [(f"r{i}", prompt_of(i, 4 + 3 * (i % 6)), names[i % 4], 50 + i) for i in range(24)]
    storm, calm = make_driver(kv_cache_gb=60 * block_bytes / 1e9), make_driver()
    paths = {name: tiny_adapters[name] for name in names if name}

    def submit(driver: Driver, keys: dict[str, AdapterKey], row: int) -> None:
        request_id, prompt, name, count = rows[row]
        driver.submit(request_id, prompt, keys.get(name or ""), count, temperature=float(row % 3 == 0), seed=row)

    keys = {name: storm.load(name, path) for name, path in paths.items()}
    for row in range(len(rows)):
        submit(storm, keys, row)
    storm.run()
    storm.engine.check_integrity()
    assert storm.engine.stats().preemptions > len(rows), "it was no storm"
    keys = {name: calm.load(name, path) for name, path in paths.items()}
    for row, (request_id, prompt, name, count) in enumerate(rows):
        if row % 3:
            storm.check(request_id, prompt, paths.get(name or ""), count)
        else:
            submit(calm, keys, row)
            calm.run()
            assert storm.tokens(request_id) == calm.tokens(request_id), request_id


def test_steps_that_run_out_of_memory_change_no_answer(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of more than two sequences fails once its KV is written, and is computed again in parts."""
    driver = make_driver()
    compute, failed = driver.engine.runner.compute, []

    def fail(inputs: ModelInput) -> ModelOutput:
        output = compute(inputs)
        if len(inputs.sequences) > 2:
            failed.append(inputs)
            torch.empty(2**60)  # no machine has it
        return output

    names = ["lora-r8", "prefix-5", "prompt-7", None]
    keys = [driver.load(name, tiny_adapters[name]) if name else None for name in names]
    monkeypatch.setattr(driver.engine.runner, "compute", fail)
    for i, key in enumerate(keys):
        driver.submit(f"r{i}", prompt_of(i, 9 + i), key)
    driver.run()
    assert len(failed) > 5
    for i, name in enumerate(names):
        driver.check(f"r{i}", prompt_of(i, 9 + i), tiny_adapters[name] if name else None)


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
