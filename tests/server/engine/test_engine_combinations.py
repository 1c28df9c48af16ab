"""Combinations of adapters in one batch with everything else, each token held against peft's weighted adapters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from server.adapter_key import AdapterKey, Weighted, combined
from server.engine.messages import AdapterFailed, AdapterLoaded, AdapterUnloaded, FinishReason
from tests import oracle
from tests.combinations import merged, peft_weighted
from tests.factory import make_base
from tests.kinds import CASES
from tests.once import Once
from tests.server.engine.driver import Driver, prompt_of
from tests.server.keys import key_of

Members = list[tuple[str, float]]
OF_LORA: dict[str, Members] = {  # other ranks, targets, scales
    "two": [("lora-r4", 0.7), ("lora-r8-attention", 0.3)],
    "subtracted": [("lora-patterns", -0.5), ("rslora-r16", 1.0)],
    "three": [("lora-r4", 1.0), ("lora-r8", 0.25), ("lora-patterns", 2.0)],
    "half": [("lora-r8", 0.5)],
    "switched-off": [("lora-r4", 1.0), ("lora-r8", 0.0)],
}
OF_KINDS: dict[str, Members] = {
    # peft takes the options of the first member for the sum, and scales that of one with rsLoRA once more.
    "rslora-first": [("rslora-r16", 1.0), ("lora-r8", -0.5)],
    "loha-lora": [("loha", 0.7), ("lora-r4", -0.3)],
    "lokr-vera": [("lokr", 0.5), ("vera", 1.0)],
    "fourierft-shira": [("fourierft", -1.5), ("shira", 0.5), ("lora-bias-on-b", 0.5)],
    "c3a-miss": [("c3a", 0.5), ("miss-r8", 0.75)],
    "randlora-adalora": [("randlora", 0.3), ("adalora", 1.2)],
}
ALONE = {
    "ia3": "otherwise than by adding", "dora-r4": "otherwise than by adding", "oft-8": "otherwise than by adding",
    "bottleneck-pfeiffer": "otherwise than by adding", "freeze-last-layer": "otherwise than by adding",
    "ln-tuning": "otherwise than by adding", "trainable-tokens": "otherwise than by adding",
    "lora-head-saved": "otherwise than by adding", "prefix-5": "virtual tokens", "prompt-7": "virtual tokens",
    "p-tuning-mlp": "virtual tokens",
}  # fmt: skip


class CombinedDriver(Driver):
    """A driver whose oracle may be another base, which says by itself what a combination must answer."""

    @override
    def want(self, prompt: list[int], tokens: list[int], path: Path | None) -> Tensor:
        if path is None or not (path / "config.json").exists():
            return super().want(prompt, tokens, path)
        return oracle.logits(path, None, prompt + tokens[:-1])[-len(tokens) :]

    def combine(self, members: Members, packages: Mapping[str, Path]) -> AdapterKey:
        """Load a combination, of members that may be resident or not."""
        key = self.key(members, packages)
        self.engine.load_adapter(key, *(packages[name] for name, _ in members))
        self.run()
        return key

    def key(self, members: Members, packages: Mapping[str, Path]) -> AdapterKey:
        return combined([Weighted(key_of(name, packages[name]), weight) for name, weight in members])


@pytest.fixture(scope="module")
def base(once: Once) -> Path:
    return once.make("combined-base", partial(make_base, attention_bias=True, mlp_bias=True))


@pytest.fixture(scope="module")
def packages(base: Path, once: Once) -> dict[str, Path]:
    names = {name for members in (OF_LORA | OF_KINDS).values() for name, _ in members} | ALONE.keys()
    return {
        name: once.make(f"combined/{name}", partial(CASES[name].save, base, seed=i))
        for i, name in enumerate(sorted(names))
    }


@pytest.fixture(scope="module")
def driver(base: Path) -> CombinedDriver:
    return CombinedDriver(base, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def wanted(base: Path, packages: Mapping[str, Path], once: Once) -> dict[str, Path]:
    """What each combination must answer, as a base of its own."""

    def parts(members: Members) -> list[tuple[Path, float]]:
        return [(packages[name], weight) for name, weight in members]

    of_lora = {
        name: once.make(f"combined/want-{name}", partial(peft_weighted, base, parts(members)))
        for name, members in OF_LORA.items()
    }
    of_kinds = {
        name: once.make(f"combined/want-{name}", partial(merged, base, parts(members)))
        for name, members in OF_KINDS.items()
    }
    return of_lora | of_kinds


def test_each_answers_as_pefts_weighted_adapters_do_alone_and_in_one_batch_with_others(
    driver: CombinedDriver, packages: Mapping[str, Path], wanted: Mapping[str, Path]
) -> None:
    others = {name: driver.load(name, packages[name]) for name in ("prefix-5", "ia3", "lora-r4", "loha")}
    combinations = OF_LORA | OF_KINDS
    keys = {name: driver.combine(members, packages) for name, members in combinations.items()}
    prompts = {name: prompt_of(i, 6 + i) for i, name in enumerate([*keys, *others, "base"])}
    for name, key in keys.items():
        driver.submit(f"alone-{name}", prompts[name], key, count=4)
        driver.run()
        driver.check(f"alone-{name}", prompts[name], wanted[name], count=4)
    for name, adapter in [*keys.items(), *others.items(), ("base", None)]:
        driver.submit(name, prompts[name], adapter, count=6)
    driver.run()
    for name in keys:
        driver.check(name, prompts[name], wanted[name], count=6)
    for name in others:
        driver.check(name, prompts[name], packages[name], count=6)
    driver.check("base", prompts["base"], None, count=6)
    for key in (*keys.values(), *others.values()):
        driver.engine.unload_adapter(key)
    driver.run()
    driver.engine.check_integrity()
    assert driver.engine.stats().adapters_resident == driver.engine.runner.adapter_bytes == 0


@pytest.mark.parametrize("name", ALONE)
def test_what_does_more_than_add_is_refused_by_name(
    driver: CombinedDriver, packages: Mapping[str, Path], name: str
) -> None:
    key = driver.key([("lora-r4", 1.0), (name, 0.5)], packages)
    driver.engine.load_adapter(key, packages["lora-r4"], packages[name])
    while driver.engine.has_work:
        driver.events += driver.engine.step()
    failed = driver.events.pop()
    assert isinstance(failed, AdapterFailed)
    assert failed.key == key
    assert failed.code == "unsupported_adapter_kind"
    assert f"{name}@1 cannot be combined" in failed.message
    assert ALONE[name] in failed.message
    assert "Name it alone" in failed.message


def test_resident_members_are_not_read_again(base: Path, packages: Mapping[str, Path], tmp_path: Path) -> None:
    driver = CombinedDriver(base)
    for name in ("lora-r4", "lora-r8-attention"):
        driver.load(name, packages[name])
    gone = dict.fromkeys(packages, tmp_path / "nowhere")
    key = driver.key(OF_LORA["two"], packages)
    driver.engine.load_adapter(key, *(gone[name] for name, _ in OF_LORA["two"]))
    driver.run()
    (loaded,) = [e for e in driver.events if isinstance(e, AdapterLoaded) and e.key == key]
    parts = {e.key.name: e.nbytes for e in driver.events if isinstance(e, AdapterLoaded) and e.key != key}
    assert loaded.kind == "combination"
    assert parts["lora-r4"] < loaded.nbytes <= 2 * sum(parts.values())


def test_a_combination_outlives_its_members_in_memory_and_is_cached_apart_from_them(
    base: Path, packages: Mapping[str, Path], wanted: Mapping[str, Path]
) -> None:
    driver, prompt = CombinedDriver(base), prompt_of(1, 17)
    members = [driver.load(name, packages[name]) for name, _ in OF_LORA["two"]]
    key = driver.combine(OF_LORA["two"], packages)
    driver.submit("running", prompt, key, count=8)
    driver.step()
    for member in members:
        driver.engine.unload_adapter(member)
    driver.run()
    assert {e.key for e in driver.events if isinstance(e, AdapterUnloaded)} == set(members)
    driver.check("running", prompt, wanted["two"])
    other = driver.combine([("lora-r4", 0.7), ("lora-r8-attention", 0.31)], packages)
    for name, again in (("again", key), ("other", other)):
        driver.submit(name, prompt, again)
        driver.run()
    cached = {name: driver.outputs[name][0].cached_tokens for name in ("again", "other")}
    assert cached == {"again": 16, "other": 0}
    driver.check("again", prompt, wanted["two"])
    assert driver.outputs["other"][-1].finish_reason is FinishReason.LENGTH


def test_weights_of_one_and_nought_change_nothing_to_the_last_bit(base: Path, packages: Mapping[str, Path]) -> None:
    driver, prompt = CombinedDriver(base), prompt_of(2, 9)
    plain = driver.load("lora-r4", packages["lora-r4"])
    assert driver.key([("lora-r4", 1.0)], packages) == plain
    key = driver.combine([("lora-r4", 1.0), ("loha", 0.0)], packages)
    for name, adapter in (("plain", plain), ("combined", key)):
        driver.submit(name, prompt, adapter)
        driver.run()
    told = [[entry.top for o in driver.outputs[name] for entry in o.logprobs or []] for name in ("plain", "combined")]
    assert told[0] == told[1]
    assert torch.tensor([value for _, value in told[0][0]]).isfinite().all()
