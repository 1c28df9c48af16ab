"""The engine end to end, on a toy model that shows wrong block tables."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.ops import Adapter
from server.adapter_key import AdapterKey
from server.engine.messages import FinishReason
from tests.server.engine.conftest import MakeEngine
from tests.server.engine.harness import Harness
from tests.server.engine.toy import KEYS, PREFIX, PROMPT, expect_greedy, load_all, prompt_of
from tests.server.engine.toy_runner import EOS, NOT_FINITE, RAISES, ToyRunner, make_package


def test_reference_tells_adapters_apart(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner()
    load_all(make_engine(runner), tmp_path)
    logits = [runner.reference(key, prompt_of(9))[-1] for key in KEYS]
    for i in range(4):
        for j in range(i):
            assert (logits[i] - logits[j]).abs().max() > 0.1


@pytest.mark.parametrize("num_virtual_tokens", [1, 4, 6, 8])
@pytest.mark.parametrize("budget", [3, 512])
def test_mixed_batch_equals_each_alone(
    make_engine: MakeEngine, tmp_path: Path, num_virtual_tokens: int, budget: int
) -> None:
    runner = ToyRunner(num_blocks=64)
    harness = make_engine(runner, max_num_batched_tokens=budget)
    load_all(harness, tmp_path, num_virtual_tokens=num_virtual_tokens)
    wanted = {}
    for i, key in enumerate(KEYS * 2):
        prompt, count = prompt_of(1 + 3 * i, seed=i), 2 + i
        wanted[f"r{i}"] = (key, prompt, count)
        harness.submit(f"r{i}", prompt, key, max_tokens=count)
    expect_greedy(harness, runner, wanted)
    assert max(sum(len(s.token_ids) for s in inputs.sequences) for inputs in runner.inputs) <= budget


def test_preemption_changes_nothing(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner(num_blocks=16)
    harness = make_engine(runner)
    load_all(harness, tmp_path)
    wanted = {}
    for i, key in enumerate(KEYS * 2):
        wanted[f"r{i}"] = (key, prompt_of(5, seed=i), 16)
        harness.submit(f"r{i}", prompt_of(5, seed=i), key, max_tokens=16)
    expect_greedy(harness, runner, wanted)
    assert harness.engine.stats().preemptions > 0


@pytest.mark.parametrize("key", KEYS)
def test_prefix_cache_hit_changes_nothing(make_engine: MakeEngine, tmp_path: Path, key: AdapterKey | None) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    load_all(harness, tmp_path)
    shared = prompt_of(17)
    wanted = {}
    for i, tail in enumerate([[], [], [5], [5, 9, 3, 3, 1]]):
        harness.submit(f"r{i}", shared + tail, key, max_tokens=5)
        wanted[f"r{i}"] = (key, shared + tail, 5)
        harness.run()
    expect_greedy(harness, runner, wanted)
    cached = [harness.results[f"r{i}"].outputs[0].cached_tokens for i in range(4)]
    virtual = runner.adapters[key].num_virtual_tokens if key else 0
    full = (virtual + 16) // 4 * 4 - virtual
    assert cached[0] == 0
    assert cached[1] == full
    assert cached[2] >= full
    assert cached[3] >= full
    stats = harness.engine.stats()
    assert stats.prefix_cache_hits == sum(cached)
    assert stats.prefix_cache_queries == 17 + 17 + 18 + 22


def test_cache_is_shared_by_content_and_salt_only(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    one, same, other = AdapterKey("a", 1, "d1"), AdapterKey("b", 7, "d1"), AdapterKey("a", 2, "d2")
    for version, seed in ((one, 1), (same, 1), (other, 2)):
        harness.load(version, make_package(tmp_path / str(version), "lora", seed=seed))
    prompt = prompt_of(13)
    hits = {}
    for name, key, salt in [
        ("cold", one, ""), ("again", one, ""), ("same content", same, ""), ("other content", other, ""),
        ("base", None, ""), ("salted", one, "tenant"), ("salted again", one, "tenant"),
    ]:  # fmt: skip
        harness.submit(name, prompt, key, salt=salt)
        hits[name] = harness.run()[name].outputs[0].cached_tokens
        assert harness.results[name].token_ids == runner.greedy(key, prompt, 4)
    assert {name for name, cached in hits.items() if cached} == {"again", "same content", "salted again"}


def test_blocks_not_yet_computed_are_not_found(make_engine: MakeEngine) -> None:
    runner = ToyRunner()
    harness = make_engine(runner, max_num_batched_tokens=6)
    harness.submit("left", prompt_of(17))
    harness.step()
    harness.engine.abort("left")
    harness.submit("stays", prompt_of(17))
    assert harness.run()["stays"].token_ids == runner.greedy(None, prompt_of(17), 4)
    assert harness.results["stays"].outputs[0].cached_tokens == 4


def test_caching_can_be_off(make_engine: MakeEngine) -> None:
    harness = make_engine(prefix_caching=False)
    for name in ("first", "second"):
        harness.submit(name, prompt_of(13))
        assert harness.run()[name].outputs[0].cached_tokens == 0


def test_abort_frees_blocks_at_once(make_engine: MakeEngine) -> None:
    harness = make_engine()
    harness.submit("r", prompt_of(9), max_tokens=20)
    harness.submit("queued", prompt_of(9))
    harness.step()
    harness.engine.abort("r")
    harness.engine.abort("unknown")
    harness.engine.abort("queued")
    assert harness.engine.stats().kv_blocks_used == 0
    results = harness.run()
    assert results["r"].finish_reason is results["queued"].finish_reason is FinishReason.ABORT
    assert len(results["r"].token_ids) == 1


@pytest.mark.parametrize("poison", [RAISES, NOT_FINITE])
def test_only_the_guilty_request_fails(make_engine: MakeEngine, tmp_path: Path, poison: int) -> None:
    runner = ToyRunner(num_blocks=64)
    harness = make_engine(runner)
    load_all(harness, tmp_path)
    wanted = {}
    for i, key in enumerate(KEYS * 2):
        wanted[f"r{i}"] = (key, prompt_of(6, seed=i), 5)
        harness.submit(f"r{i}", prompt_of(6, seed=i), key, max_tokens=5)
    for name, key in (("bad1", None), ("bad2", PREFIX)):
        harness.submit(name, [*prompt_of(6), poison], key)
    expect_greedy(harness, runner, wanted)
    for name in ("bad1", "bad2"):
        assert harness.results[name].finish_reason is FinishReason.ERROR
        assert "this request" in str(harness.results[name].error)


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ([], {}, "empty"),
        ([64], {}, "between 0 and 63"),
        ([-1], {}, "between 0 and 63"),
        ([1], {"logit_bias": {64: 1.0}}, "between 0 and 63"),
        ([1] * 64, {}, "64 tokens"),
        ([1] * 65, {"max_tokens": 0, "prompt_logprobs": 0}, "65 tokens"),
    ],
)
def test_impossible_requests_get_one_error(
    make_engine: MakeEngine, prompt: list[int], params: dict[str, Any], words: str
) -> None:
    harness = make_engine()
    harness.submit("r", prompt, **params)
    result = harness.run()["r"]
    assert len(result.outputs) == 1
    assert words in str(result.error)


def test_virtual_tokens_count_against_the_context(make_engine: MakeEngine, tmp_path: Path) -> None:
    harness = make_engine()
    load_all(harness, tmp_path)
    for key in (PREFIX, PROMPT):
        harness.submit(f"long {key.name}", prompt_of(58), key)
        harness.submit(key.name, prompt_of(55), key, max_tokens=10)
    results = harness.run()
    for key in (PREFIX, PROMPT):
        assert "6 virtual" in str(results[f"long {key.name}"].error)
        assert len(results[key.name].token_ids) == 3
        assert results[key.name].finish_reason is FinishReason.LENGTH


def test_more_than_all_blocks(make_engine: MakeEngine) -> None:
    runner = ToyRunner(num_blocks=4)
    harness = make_engine(runner)
    harness.submit("never fits", prompt_of(17))
    harness.submit("grows too long", prompt_of(10), max_tokens=40)
    harness.submit("fits", prompt_of(3))
    results = harness.run()
    assert "does not fit" in str(results["never fits"].error)
    assert results["grows too long"].finish_reason is FinishReason.LENGTH
    assert results["grows too long"].token_ids == runner.greedy(None, prompt_of(10), 7)
    assert results["fits"].token_ids == runner.greedy(None, prompt_of(3), 4)


def test_stop_tokens(make_engine: MakeEngine) -> None:
    runner = ToyRunner()
    prompt = prompt_of(5)
    tokens = runner.greedy(None, prompt, 8)
    stop = tokens[3]
    first = tokens.index(stop)
    harness = make_engine(runner)
    harness.submit("stops", prompt, max_tokens=8, stop_token_ids=(stop,))
    harness.submit("later", prompt, max_tokens=8, stop_token_ids=(stop,), min_tokens=first + 1)
    results = harness.run()
    assert results["stops"].token_ids == tokens[: first + 1]
    assert results["stops"].finish_reason is FinishReason.STOP
    assert results["stops"].outputs[-1].stop_token_id == stop
    assert results["later"].token_ids[: first + 1] != tokens[: first + 1]
    assert stop not in results["later"].token_ids[: first + 1]


def test_end_of_sequence(make_engine: MakeEngine) -> None:
    harness = make_engine()
    bias = {EOS: 100.0}
    harness.submit("ends", prompt_of(5), ignore_eos=False, logit_bias=bias)
    harness.submit("min", prompt_of(5), ignore_eos=False, logit_bias=bias, min_tokens=2)
    harness.submit("ignores", prompt_of(5), logit_bias=bias)
    results = harness.run()
    assert results["ends"].token_ids == [EOS]
    assert results["ends"].outputs[-1].stop_token_id == EOS
    assert len(results["min"].token_ids) == 3
    assert results["ignores"].token_ids == [EOS] * 4
    assert results["ignores"].finish_reason is FinishReason.LENGTH
    assert results["ignores"].outputs[-1].stop_token_id is None


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("budget", [4, 512])
def test_prompt_logprobs(make_engine: MakeEngine, tmp_path: Path, key: AdapterKey | None, budget: int) -> None:
    runner = ToyRunner(num_blocks=12)
    harness = make_engine(runner, max_num_batched_tokens=budget)
    load_all(harness, tmp_path)
    prompt = prompt_of(11)
    for name in ("cold", "warm"):
        harness.submit(name, prompt, key, prompt_logprobs=2, logprobs=3, max_tokens=2)
        harness.submit(f"{name} echo", prompt, key, prompt_logprobs=0, max_tokens=0)
        harness.run()
    expected = runner.reference(key, prompt).log_softmax(-1)
    for name, result in harness.results.items():
        entries = result.prompt_logprobs
        assert entries[0] is None
        assert len(entries) == 11
        parts = [output.prompt_logprobs or [] for output in result.outputs]
        assert max(map(len, parts)) <= budget + 1, "each step tells what it has computed"
        assert not any(parts[-1:] if "echo" in name else parts[-2:]), "all is told before the first token"
        for position, entry in enumerate(entries[1:]):
            assert entry is not None
            assert entry.token_id == prompt[position + 1]
            assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=1e-5)
            assert entry.rank == int((expected[position] > expected[position, entry.token_id]).sum()) + 1
            best = expected[position].topk(2)
            assert [token for token, _ in entry.top] == ([] if "echo" in name else best.indices.tolist())
        if "echo" in name:
            assert (result.token_ids, result.finish_reason) == ([], FinishReason.LENGTH)
        else:
            assert result.token_ids == runner.greedy(key, prompt, 2)
            assert [entry.token_id for entry in result.logprobs] == result.token_ids
            assert [len(entry.top) for entry in result.logprobs] == [3, 3]


def test_prompt_logprobs_survive_preemption(make_engine: MakeEngine) -> None:
    runner = ToyRunner(num_blocks=8)
    harness = make_engine(runner, max_num_batched_tokens=6)
    harness.submit("first", prompt_of(7), max_tokens=16)
    harness.step()
    harness.step()
    harness.submit("second", prompt_of(19), prompt_logprobs=0)
    results = harness.run()
    assert harness.engine.stats().preemptions > 0
    expected = runner.reference(None, prompt_of(19)).log_softmax(-1)
    for position, entry in enumerate(results["second"].prompt_logprobs[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=1e-5)
    assert results["second"].token_ids == runner.greedy(None, prompt_of(19), 4)


def test_sampled_tokens_do_not_depend_on_the_batch(make_engine: MakeEngine, tmp_path: Path) -> None:
    """Alone, in company and with preemption, a seed gives the same tokens."""

    def submit(harness: Harness, i: int) -> None:
        harness.submit(
            f"r{i}", prompt_of(6, seed=i), KEYS[i % 4], max_tokens=12, temperature=1.3, top_p=0.9, seed=i,
            frequency_penalty=0.5, repetition_penalty=1.1,
        )  # fmt: skip

    harness = make_engine(ToyRunner(num_blocks=18))
    load_all(harness, tmp_path)
    for i in range(8):
        submit(harness, i)
    together = {name: result.token_ids for name, result in harness.run().items()}
    assert harness.engine.stats().preemptions > 0
    for i in range(8):
        alone = make_engine()
        load_all(alone, tmp_path)
        submit(alone, i)
        assert alone.run()[f"r{i}"].token_ids == together[f"r{i}"]


def test_rows_of_one_adapter_are_contiguous(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner(num_blocks=64)
    harness = make_engine(runner)
    load_all(harness, tmp_path)
    for i in range(12):
        harness.submit(f"r{i}", prompt_of(4, seed=i), KEYS[i % 4])
    harness.run()
    for inputs in runner.inputs:
        order = [sequence.adapter for sequence in inputs.sequences]
        changes = sum(a != b for a, b in pairwise(order))
        assert changes == len(set(order)) - 1


def test_first_output_tells_the_time_in_the_queue(make_engine: MakeEngine) -> None:
    harness = make_engine(max_num_seqs=1)
    harness.submit("first", prompt_of(4))
    harness.submit("second", prompt_of(4, seed=1))
    results = harness.run()
    assert results["second"].outputs[0].queued_seconds > results["first"].outputs[0].queued_seconds > 0
    assert all(output.queued_seconds == 0 for output in results["second"].outputs[1:])


def test_statistics_add_up(make_engine: MakeEngine) -> None:
    harness = make_engine(speculation="off")
    harness.submit("a", prompt_of(5))
    harness.submit("b", prompt_of(7, seed=1))
    harness.run()
    stats = harness.engine.stats()
    assert stats.steps == 4
    assert stats.batch_requests == 8
    assert stats.batch_tokens == 5 + 7 + 6
    parts = (stats.schedule_seconds, stats.forward_seconds, stats.sample_seconds)
    assert min(parts) > 0
    assert stats.step_seconds > sum(parts)
    assert (stats.kv_blocks_used, stats.kv_blocks_total) == (0, 32)


def test_duplicate_request_id_is_a_value_error(make_engine: MakeEngine) -> None:
    harness = make_engine()
    harness.submit("r", prompt_of(4))
    with pytest.raises(ValueError, match="in use"):
        harness.submit("r", prompt_of(4))


def test_random_traffic_equals_each_alone(make_engine: MakeEngine, tmp_path: Path) -> None:
    """A long run of arrivals, aborts, versions coming and going, on a cache that is too small."""
    rng = random.Random(0)
    runner = ToyRunner(num_blocks=20)
    harness = make_engine(runner, max_num_batched_tokens=13, max_num_seqs=5)
    kinds = ["lora", "prefix", "prompt"]
    current: dict[str, AdapterKey] = {}
    compiled: dict[AdapterKey, Adapter] = {}
    wanted: dict[str, tuple[AdapterKey | None, list[int], int]] = {}
    for i in range(120):
        if i % 12 == 0:
            kind = kinds[i // 12 % 3]
            version = AdapterKey(kind, i, f"{kind}{i}")
            package = make_package(tmp_path / str(version), kind, seed=i, num_virtual_tokens=rng.randint(1, 9))
            compiled[version] = runner.prepare(package).adapter
            harness.engine.load_adapter(version, package)
            if kind in current:
                harness.engine.unload_adapter(current[kind])
            current[kind] = version
        chosen = rng.choice([None, *current.values()])
        prompt = prompt_of(rng.randint(1, 20), seed=rng.randrange(4))
        wanted[f"r{i}"] = (chosen, prompt, rng.randint(1, 12))
        harness.submit(f"r{i}", prompt, chosen, max_tokens=wanted[f"r{i}"][2])
        for _ in range(rng.randrange(4)):
            harness.step()
        if rng.random() < 0.1:
            harness.engine.abort(f"r{rng.randint(0, i)}")
    results = harness.run()
    runner.adapters = compiled
    ended = [results[name].finish_reason for name in wanted]
    assert ended.count(FinishReason.LENGTH) > 100
    for name, case in wanted.items():
        if results[name].finish_reason is FinishReason.LENGTH:
            assert results[name].token_ids == runner.greedy(*case), name
        else:
            assert results[name].finish_reason is FinishReason.ABORT
    runner.adapters = {key: compiled[key] for key in current.values()}
    assert harness.engine.stats().preemptions > 0


def test_logits_are_those_of_the_reference() -> None:
    """The toy's own two ways of computing agree, else the tests above would mean little."""
    runner = ToyRunner()
    tokens = prompt_of(10)
    whole = runner.reference(None, tokens)
    shorter = runner.reference(None, tokens[:4])
    assert torch.allclose(whole[:4], shorter, atol=1e-6)
