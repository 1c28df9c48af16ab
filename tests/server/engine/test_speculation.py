"""Drafted tokens change nothing but how many steps an output takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typing_extensions import override

from hotkernels import native
from server.adapter_key import AdapterKey
from server.engine.draft_size import DraftSize
from server.engine.engine import Engine
from server.engine.messages import FinishReason, TokenLogprobs
from server.engine.prompt_lookup import PromptLookup
from server.engine.scheduler import AdapterSlot
from tests.factory import VOCAB_SIZE
from tests.server.engine.conftest import MakeEngine
from tests.server.engine.driver import Driver, prompt_of
from tests.server.engine.harness import Harness, Result
from tests.server.engine.toy import KEYS, load_all
from tests.server.engine.toy import prompt_of as toy_prompt
from tests.server.engine.toy_runner import EOS, NOT_FINITE, RAISES, ToyRunner


class Everything(DraftSize):
    """Drafts whatever can be guessed, as if rows cost nothing."""

    @override
    def share(self, num_streams: int, chances: Sequence[Sequence[float]]) -> list[int]:
        return [len(draft) for draft in chances]


def draft_everything(engine: Engine) -> None:
    assert engine._draft_size is not None
    engine._draft_size = Everything()


class Oracle(PromptLookup):
    """Guesses the outputs that it is told of by their beginnings, with mistakes."""

    answers: ClassVar[list[list[int]]] = []
    mistakes: ClassVar[float] = 0.0
    wrong: ClassVar[tuple[int, ...]] = (1, 2, EOS)
    rng: ClassVar[random.Random] = random.Random(0)

    @override
    def chances(self, count: int) -> list[float]:
        return [0.9] * len(self.guess(count))

    @override
    def guess(self, count: int) -> list[int]:
        own = self._tokens[self._start :]
        known = next((a for a in self.answers if a[: len(own)] == own and len(a) > len(own)), [])
        rest = [*known[len(own) :], *[1] * count][: self.rng.randint(0, count)]
        return [self.rng.choice(self.wrong) if self.rng.random() < self.mistakes else token for token in rest]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> type[Oracle]:
    monkeypatch.setattr("server.engine.request.PromptLookup", Oracle)
    monkeypatch.setattr(Oracle, "answers", [])
    monkeypatch.setattr(Oracle, "rng", random.Random(0))
    return Oracle


@dataclass(frozen=True)
class Case:
    """One request."""

    name: str
    key: AdapterKey | None
    prompt: list[int]
    params: dict[str, Any] = field(default_factory=dict)


def random_case(rng: random.Random, name: str) -> Case:
    prompt = [rng.randrange(60) for _ in range(rng.randint(1, 20))]
    params: dict[str, Any] = {
        "max_tokens": rng.choice([1, 2, 3, 5, 8, 17, 40]),
        "temperature": rng.choice([0.0, 0.0, 0.3, 1.0]),
        "seed": rng.randrange(1000),
        "ignore_eos": rng.random() < 0.5,
        "logprobs": rng.choice([None, 0, 3]),
    }
    rare: dict[str, Any] = {
        "prompt_logprobs": 1,
        "min_tokens": min(3, params["max_tokens"]),
        "stop_token_ids": tuple(rng.sample(range(60), 5)),
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "bad_words": ((4,), (3, 5), (8, 9, 9)),
        "logit_bias": {3: 4.0, EOS: 2.0},
        "allowed_token_ids": (5, 6, 7, 8, 40, EOS),
        "top_k": 4,
        "top_p": 0.8,
        "speculation": False,
    }
    params |= {key: value for key, value in rare.items() if rng.random() < 0.15}
    return Case(name, rng.choice(KEYS), prompt, params)


def run(harness: Harness, cases: Sequence[Case], rng: random.Random | None = None) -> dict[str, Result]:
    """All at once, or at random moments."""
    for case in cases:
        harness.submit(case.name, case.prompt, case.key, **case.params)
        while rng is not None and rng.random() < 0.5 and harness.engine.has_work:
            harness.step()
    return harness.run()


def told(result: Result) -> tuple[object, ...]:
    """What a client can see of an output, steps apart."""
    last = result.outputs[-1]
    return (
        result.token_ids, result.logprobs, result.prompt_logprobs, last.finish_reason, last.stop_token_id, last.error,
    )  # fmt: skip


def drafted(results: Mapping[str, Result]) -> tuple[int, int]:
    outputs = [output for result in results.values() for output in result.outputs]
    return sum(o.drafted_tokens for o in outputs), sum(o.accepted_tokens for o in outputs)


@pytest.mark.parametrize("mistakes", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_any_requests_in_any_mix(
    make_engine: MakeEngine, tmp_path: Path, oracle: type[Oracle], seed: int, mistakes: float
) -> None:
    """Few blocks, small steps, adapters, everything that a request can ask for, and drafts right and wrong."""
    rng = random.Random(seed)
    config = {"max_num_batched_tokens": rng.choice([12, 64]), "max_num_seqs": rng.choice([2, 6])}
    config["prefix_caching"] = rng.random() < 0.7
    scheduling = "fair" if seed % 2 else "fcfs"
    cases = [random_case(rng, f"r{i}") for i in range(24)]
    harnesses = {}
    for speculation in ("off", "auto"):
        harness = harnesses[speculation] = make_engine(
            ToyRunner(num_blocks=24), speculation=speculation, scheduling=scheduling, **config
        )
        load_all(harness, tmp_path, num_virtual_tokens=5)
    plain = run(harnesses["off"], cases)
    assert drafted(plain) == (0, 0)
    oracle.answers = [case.prompt + plain[case.name].token_ids for case in cases]
    oracle.mistakes = mistakes
    draft_everything(harnesses["auto"].engine)
    found = run(harnesses["auto"], cases, rng)
    assert {name: told(result) for name, result in found.items()} == {n: told(result) for n, result in plain.items()}
    count, accepted = drafted(found)
    assert count > 15 or (scheduling == "fair" and count > 0), "what others take of a step is measured time"
    assert accepted > 0 or mistakes == 1
    assert all(
        drafted({case.name: found[case.name]}) == (0, 0) for case in cases if not case.params.get("speculation", 1)
    )


def test_preemption_amid_drafts(make_engine: MakeEngine, oracle: type[Oracle]) -> None:
    cases = [Case(f"r{i}", None, toy_prompt(7, seed=i), {"max_tokens": 30}) for i in range(8)]
    plain = run(make_engine(ToyRunner(num_blocks=64), speculation="off"), cases)
    oracle.answers, oracle.mistakes = [case.prompt + plain[case.name].token_ids for case in cases], 0.1
    harness = make_engine(ToyRunner(num_blocks=20))
    draft_everything(harness.engine)
    found = run(harness, cases)
    assert harness.engine.stats().preemptions > 0
    assert {name: told(result) for name, result in found.items()} == {n: told(result) for n, result in plain.items()}
    assert drafted(found)[1] > 100


def test_nobody_is_preempted_for_a_draft(make_engine: MakeEngine, oracle: type[Oracle]) -> None:
    """Two requests that just fit: drafts of either would need a block of the other's."""
    oracle.answers = [[1, 2, 3, 4, *[5] * 40]]
    harness = make_engine(ToyRunner(num_blocks=4))
    draft_everything(harness.engine)
    for name in "ab":
        harness.submit(name, [1, 2, 3, 4], max_tokens=5)
    harness.run()
    assert harness.engine.stats().preemptions == 0


@pytest.mark.parametrize("poison", [RAISES, NOT_FINITE])
def test_a_draft_that_the_model_fails_on_costs_nothing(
    make_engine: MakeEngine, oracle: type[Oracle], poison: int
) -> None:
    oracle.mistakes, oracle.wrong = 0.5, (poison,)
    cases = [Case("a", None, [3, 4, 5], {"max_tokens": 12}), Case("b", None, [9, 8, 7], {"max_tokens": 12})]
    plain = run(make_engine(speculation="off"), cases)
    oracle.answers = [case.prompt + plain[case.name].token_ids for case in cases]
    runner = ToyRunner()
    harness = make_engine(runner)
    draft_everything(harness.engine)
    found = run(harness, cases)
    assert any(poison in s.token_ids for inputs in runner.inputs for s in inputs.sequences)
    assert {name: told(result) for name, result in found.items()} == {n: told(result) for n, result in plain.items()}


def test_an_output_ends_amid_what_was_accepted(make_engine: MakeEngine, oracle: type[Oracle]) -> None:
    runner = ToyRunner()
    answer = runner.greedy(None, [3, 4, 5], 12)
    stop = answer[5]
    oracle.answers = [[3, 4, 5, *answer]]
    oracle.rng = random.Random(3)
    harness = make_engine(runner)
    draft_everything(harness.engine)
    harness.submit("stop", [3, 4, 5], max_tokens=12, stop_token_ids=(stop,), logprobs=0)
    result = harness.run()["stop"]
    end = answer.index(stop)
    assert result.token_ids == answer[: end + 1]
    assert len(result.logprobs) == end + 1
    assert (result.finish_reason, result.outputs[-1].stop_token_id) == (FinishReason.STOP, stop)
    assert drafted({"stop": result})[1] == sum(len(output.token_ids) - 1 for output in result.outputs)


def test_batches_are_counted_with_drafts(make_engine: MakeEngine, oracle: type[Oracle]) -> None:
    oracle.answers = [[3, 4, 5, *[1] * 40]]
    harness = make_engine()
    draft_everything(harness.engine)
    harness.submit("r", [3, 4, 5], max_tokens=9)
    results = harness.run()
    stats, (count, accepted) = harness.engine.stats(), drafted(results)
    assert stats.batch_tokens == 3 + 9 - 1 + count - accepted


@pytest.mark.parametrize("why", ["config", "rows", "request", "adapter"])
def test_nothing_is_drafted_where_it_is_off(make_engine: MakeEngine, why: str) -> None:
    runner = ToyRunner()
    runner.has_exact_rows = why != "rows"
    harness = make_engine(runner, speculation="off" if why == "config" else "auto")
    assert (harness.engine._draft_size is None) == (why in {"config", "rows"})
    if harness.engine._draft_size is not None:
        draft_everything(harness.engine)
    if why == "adapter":
        harness.engine.scheduler.slots[None] = AdapterSlot(has_exact_rows=False)
    harness.submit("r", [4] * 12, max_tokens=20, speculation=why != "request")
    assert drafted(harness.run()) == (0, 0)


# ---- the real model, the real guesses ----


@pytest.mark.skipif(native.variant() == native.TORCH, reason="torch's products depend on what is beside a row")
@pytest.mark.parametrize(
    "tight",
    [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=[pytest.mark.slow, pytest.mark.numeric])],
)
def test_every_kind_to_the_last_bit(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path], tight: bool
) -> None:
    """Prompts that repeat themselves, beside each other, in chunks, from the prefix cache, and preempted."""
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, key and value, fp32
    settings: dict[str, object] = {"kv_cache_gb": 130 * block_bytes / 1e9} if tight else {}
    outputs: dict[str, dict[str, tuple[list[int], list[TokenLogprobs]]]] = {}
    counts = {}
    for speculation in ("off", "auto"):
        driver = make_driver(speculation=speculation, **settings)
        if speculation == "auto":
            draft_everything(driver.engine)
        keys = [None, *(driver.load(name, path) for name, path in tiny_adapters.items())]
        for wave in ("first", "again"):
            for i, key in enumerate(keys):
                prompt = prompt_of(i, 7 + i % 5) * 3
                driver.submit(f"{wave} {key}", prompt, key, 24, temperature=0.5 * (i % 4 == 3), seed=i)
                driver.step()
            driver.run()
        if tight:
            assert driver.engine.stats().preemptions > 0
        outputs[speculation] = {
            name: (driver.tokens(name), [entry for output in found for entry in output.logprobs or []])
            for name, found in driver.outputs.items()
        }
        every = [o for found in driver.outputs.values() for o in found]
        counts[speculation] = (sum(o.drafted_tokens for o in every), sum(o.accepted_tokens for o in every))
    assert all(len(entry.top) >= VOCAB_SIZE for _, entries in outputs["off"].values() for entry in entries)
    assert outputs["auto"] == outputs["off"]
    count, accepted = counts["auto"]
    assert counts["off"] == (0, 0)
    assert 0 < accepted < count, "some were right and some wrong"
