"""The whole engine on an encoder-decoder, against transformers and peft running one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from server.adapter_key import AdapterKey
from server.engine.messages import AdapterUnloaded, EngineRequest, FinishReason, SamplingParams
from tests.server.engine.driver import Driver, prompt_of
from tests.server.keys import key_of
from tests.server.model.seq2seq import support


class Seq2SeqDriver(Driver):
    """A driver whose oracle reads the prompt with the encoder."""

    def want(self, prompt: list[int], tokens: list[int], path: Path | None) -> Tensor:
        return support.logits(self.base, path, prompt, tokens[:-1])


@pytest.fixture(scope="module", params=support.BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_seq2seq_base(tmp_path_factory.mktemp("base") / request.param, **support.BASES[request.param])


@pytest.fixture(scope="module")
def packages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    names = enumerate(support.CONFIGS)
    return {name: support.make_seq2seq_adapter(base, root / name, name, seed=i) for i, name in names}


MakeDriver = Callable[..., Seq2SeqDriver]


@pytest.fixture
def make_driver(base: Path) -> Iterator[MakeDriver]:
    drivers: list[Seq2SeqDriver] = []

    def make(**settings: object) -> Seq2SeqDriver:
        drivers.append(Seq2SeqDriver(base, **settings))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.engine.check_integrity()


def test_every_kind_mixed_with_base(make_driver: MakeDriver, packages: Mapping[str, Path]) -> None:
    driver = make_driver()
    keys: list[AdapterKey | None] = [driver.load(name, path) for name, path in packages.items()]
    rows = list(enumerate([None, *keys, None, *keys[:2]]))
    for i, key in rows:
        driver.submit(f"r{i}", prompt_of(i, 5 + 3 * i), key)
        driver.step()  # the requests are in different phases
    driver.run()
    for i, key in rows:
        driver.check(f"r{i}", prompt_of(i, 5 + 3 * i), driver.paths[key] if key else None)


def test_a_prompt_is_read_whole_though_it_exceeds_the_budget(
    make_driver: MakeDriver, packages: Mapping[str, Path]
) -> None:
    driver = make_driver(max_num_batched_tokens=5)
    names = ["lora-r4", "prefix-9", "prompt-7"]
    for i, name in enumerate(names):
        driver.submit(name, prompt_of(i, 33), driver.load(name, packages[name]), 6)
    driver.submit("base", prompt_of(9, 41), None, 6)
    driver.run()
    for i, name in enumerate(names):
        driver.check(name, prompt_of(i, 33), packages[name], 6)
    driver.check("base", prompt_of(9, 41), None, 6)


def test_the_same_prompt_twice_shares_no_blocks(make_driver: MakeDriver) -> None:
    driver = make_driver()
    for name in ("first", "second"):
        driver.submit(name, prompt_of(0, 30), None, 4)
        driver.run()
        driver.check(name, prompt_of(0, 30), None, 4)
        assert driver.outputs[name][0].cached_tokens == 0


def test_preemption(make_driver: MakeDriver, base: Path, packages: Mapping[str, Path]) -> None:
    layers = support.BASES[base.name].get("num_decoder_layers", support.TINY["num_decoder_layers"])
    block_bytes = 4 * layers * 2 * 64 * 4  # positions, layers, key and value, fp32
    driver = make_driver(kv_cache_gb=36.5 * block_bytes / 1e9)
    names = ["lora-r4", "prefix-5", "prompt-7"]
    keys = [driver.load(name, packages[name]) for name in names]
    for i, (name, key) in enumerate(zip(names, keys, strict=True)):
        driver.submit(name, prompt_of(i, 20), key, 24)
    driver.submit("base", prompt_of(7, 20), None, 24)
    driver.run()
    assert driver.engine.stats().preemptions > 0, "the cache was not tight enough to preempt"
    for i, name in enumerate(names):
        driver.check(name, prompt_of(i, 20), packages[name], 24)
    driver.check("base", prompt_of(7, 20), None, 24)


def test_cancelling_and_replacing_mid_stream(
    make_driver: MakeDriver, base: Path, packages: Mapping[str, Path], tmp_path: Path
) -> None:
    better = support.make_seq2seq_adapter(base, tmp_path / "v2", "lora-qv", seed=77)
    driver = make_driver()
    old = driver.load("task", packages["lora-qv"], 1)
    for name, count in (("before", 16), ("cancelled", 200)):  # the latter is still running when the load has ended
        driver.submit(name, prompt_of(3, 12), old, count)
    for _ in range(4):
        driver.step()
    driver.engine.load_adapter(key_of("task", better, 2), better)
    driver.engine.adapters._loader.submit(int).result()
    new = driver.wait_for("task", better, 2)
    driver.engine.unload_adapter(old, force=False)
    driver.submit("after", prompt_of(3, 12), new, 16)
    driver.engine.abort("cancelled")
    driver.run()
    driver.check("before", prompt_of(3, 12), packages["lora-qv"], 16)
    driver.check("after", prompt_of(3, 12), better, 16)
    assert [o.finish_reason for o in driver.outputs["cancelled"] if o.finish_reason] == [FinishReason.ABORT]
    assert [e.key for e in driver.events if isinstance(e, AdapterUnloaded)] == [old]


def ask(driver: Seq2SeqDriver, name: str, prompt: list[int], **params: Any) -> list[int]:
    sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params})
    driver.outputs[name] = []
    driver.engine.add_request(EngineRequest(request_id=name, prompt_ids=prompt, sampling=sampling))
    driver.run()
    return driver.tokens(name)


def test_sampling_is_the_shared_one(make_driver: MakeDriver) -> None:
    driver = make_driver()
    prompt = prompt_of(5, 9)
    plain = ask(driver, "plain", prompt, max_tokens=6)
    assert (
        ask(driver, "stopped", prompt, max_tokens=6, stop_token_ids=(plain[2],)) == plain[: plain.index(plain[2]) + 1]
    )
    assert plain[0] not in ask(driver, "biased", prompt, max_tokens=6, logit_bias={plain[0]: -100.0})
    seeded = [ask(driver, f"seed-{i}", prompt, max_tokens=12, temperature=1.0, seed=4) for i in range(2)]
    assert seeded[0] == seeded[1]
    repeated = ask(driver, "penalized", prompt, max_tokens=8, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(repeated)) == 8


def test_penalties_see_the_decoder_and_not_the_prompt(make_driver: MakeDriver) -> None:
    driver = make_driver()
    target = ask(driver, "plain", prompt_of(5, 9), max_tokens=1)
    prompt = [*prompt_of(5, 9), *target]
    plain = ask(driver, "again", prompt, max_tokens=1)
    assert ask(driver, "penalized", prompt, max_tokens=1, repetition_penalty=1.0001) == plain


def test_log_probabilities_of_the_prompt_are_refused(make_driver: MakeDriver) -> None:
    driver = make_driver()
    assert ask(driver, "scored", prompt_of(5, 9), max_tokens=1, prompt_logprobs=0, logprobs=0) == []
    assert "encoder-decoder" in str(driver.outputs["scored"][0].error)


def test_room_counts_prompt_and_output(make_driver: MakeDriver) -> None:
    driver = make_driver(max_model_len=20)
    assert len(ask(driver, "full", prompt_of(1, 15), max_tokens=50)) == 5
    assert ask(driver, "too long", prompt_of(1, 20), max_tokens=1) == []
    assert "no room for output" in str(driver.outputs["too long"][0].error)
