"""The engine end to end, on a toy model that shows wrong block tables."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from adapters.ops import Adapter
from server.adapter_key import AdapterKey
from server.engine.messages import AdapterFailed, AdapterLoaded, AdapterUnloaded, FinishReason
from server.model.prepared import PreparedAdapter
from tests.server.engine.conftest import MakeEngine
from tests.server.engine.harness import DEADLINE, Harness
from tests.server.engine.toy_runner import EOS, NOT_FINITE, RAISES, ToyRunner, make_package

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


def test_prefix_adapter_shares_its_blocks(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    harness.load(PREFIX, make_package(tmp_path / "p", "prefix", num_virtual_tokens=10))
    assert harness.engine.stats().kv_blocks_used == 3
    for i in range(3):
        harness.submit(f"r{i}", prompt_of(1, seed=i), PREFIX, max_tokens=1)
    harness.step()
    tables = [sequence.block_table for sequence in runner.inputs[-1].sequences]
    assert len({tuple(table[:2]) for table in tables}) == 1, "full blocks are shared"
    assert len({table[2] for table in tables}) == 3, "the last one is copied"
    assert [source for source, _ in runner.inputs[-1].copies] == [runner.inputs[-1].copies[0][0]] * 3


def test_prefix_that_does_not_fit_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner(num_blocks=8)
    harness = make_engine(runner)
    answer = harness.load(PREFIX, make_package(tmp_path / "p", "prefix", num_virtual_tokens=17))
    assert isinstance(answer, AdapterFailed)
    assert "half of the 8 KV blocks" in answer.message
    assert not runner.adapters
    answer = harness.load(PROMPT, make_package(tmp_path / "q", "prompt", num_virtual_tokens=63))
    assert isinstance(answer, AdapterFailed)
    assert "no room for a prompt" in answer.message


def test_prefix_load_preempts_when_blocks_are_in_use(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner(num_blocks=8)
    harness = make_engine(runner)
    for i in range(2):
        harness.submit(f"r{i}", prompt_of(13, seed=i), max_tokens=3)
    harness.step()
    assert harness.engine.stats().kv_blocks_used == 8
    harness.engine.load_adapter(PREFIX, make_package(tmp_path / "p", "prefix", num_virtual_tokens=12))
    harness.engine.adapters.wait(DEADLINE)
    harness.step()
    assert isinstance(harness.wait_loaded(PREFIX), AdapterLoaded)
    assert all(result.finish_reason is None for result in harness.results.values())
    expect_greedy(harness, runner, {f"r{i}": (None, prompt_of(13, seed=i), 3) for i in range(2)})
    assert harness.engine.stats().preemptions == 1


def test_a_request_waits_for_its_adapter_while_others_run(make_engine: MakeEngine, tmp_path: Path) -> None:
    class SlowRunner(ToyRunner):
        go_on = Event()

        def prepare(self, path: Path) -> PreparedAdapter:
            assert self.go_on.wait(30)
            return super().prepare(path)

    runner = SlowRunner()
    harness = make_engine(runner)
    harness.engine.load_adapter(LORA, make_package(tmp_path / "p", "lora"))
    harness.submit("waits", prompt_of(5), LORA)
    harness.submit("runs", prompt_of(5))
    harness.run_until(lambda: harness.results["runs"].finish_reason is not None)
    assert harness.results["waits"].outputs == []
    stats = harness.engine.stats()
    assert (stats.num_waiting, stats.waiting_adapters) == (1, ["lora"])
    runner.go_on.set()
    expect_greedy(harness, runner, {"waits": (LORA, prompt_of(5), 4)})


def test_failed_load_fails_its_requests_only(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    harness.engine.load_adapter(LORA, tmp_path / "absent")
    harness.submit("orphan", prompt_of(5), LORA)
    harness.submit("fine", prompt_of(5))
    answer = harness.wait_loaded(LORA)
    assert isinstance(answer, AdapterFailed)
    assert (answer.code, answer.message) == ("invalid_adapter_package", "there is no package")
    results = harness.run()
    assert results["orphan"].finish_reason is FinishReason.ERROR
    assert results["fine"].token_ids == runner.greedy(None, prompt_of(5), 4)
    harness.submit("late", prompt_of(5), LORA)
    assert "not loaded" in str(harness.run()["late"].error)


def test_crash_in_the_loader_is_a_failed_load(make_engine: MakeEngine, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"not safetensors")
    harness = make_engine()
    answer = harness.load(LORA, broken)
    assert isinstance(answer, AdapterFailed)
    assert "log" in answer.message


def test_failed_prefix_write_leaves_nothing_behind(make_engine: MakeEngine, tmp_path: Path) -> None:
    class BrokenRunner(ToyRunner):
        def write_prefix(self, key: AdapterKey, block_table: list[int]) -> None:
            raise RuntimeError("no")

    runner = BrokenRunner()
    harness = make_engine(runner)
    assert isinstance(harness.load(PREFIX, make_package(tmp_path / "p", "prefix")), AdapterFailed)
    assert not runner.adapters
    assert harness.engine.stats().kv_blocks_used == 0


def test_unload_waits_for_the_last_request(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    load_all(harness, tmp_path)
    wanted = {key.name: (key, prompt_of(5), 6) for key in (LORA, PREFIX, PROMPT)}
    expected = {name: runner.greedy(*case) for name, case in wanted.items()}
    for name, (key, prompt, count) in wanted.items():
        harness.submit(name, prompt, key, max_tokens=count)
    harness.step()
    for key in (LORA, PREFIX, PROMPT):
        harness.engine.unload_adapter(key)
    harness.step()
    assert harness.unloaded == []
    harness.run()
    assert {name: harness.results[name].token_ids for name in wanted} == expected
    assert set(harness.unloaded) == {LORA, PREFIX, PROMPT}
    assert not runner.adapters
    assert harness.engine.stats().kv_blocks_used == 0


def test_forced_unload_aborts(make_engine: MakeEngine, tmp_path: Path) -> None:
    harness = make_engine()
    load_all(harness, tmp_path)
    harness.submit("gone", prompt_of(5), PREFIX, max_tokens=20)
    harness.submit("stays", prompt_of(5), LORA)
    harness.step()
    harness.engine.unload_adapter(PREFIX, force=True)
    results = harness.run()
    assert results["gone"].finish_reason is FinishReason.ABORT
    assert results["stays"].finish_reason is FinishReason.LENGTH
    assert harness.unloaded == [PREFIX]


@pytest.mark.parametrize("exists", [True, False])
def test_unload_while_loading(make_engine: MakeEngine, tmp_path: Path, exists: bool) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    harness.engine.load_adapter(LORA, make_package(tmp_path / "p", "lora") if exists else tmp_path / "absent")
    harness.submit("r", prompt_of(5), LORA)
    harness.engine.unload_adapter(LORA)
    harness.run()
    assert isinstance(harness.wait_loaded(LORA), AdapterLoaded if exists else AdapterFailed)
    assert harness.unloaded == [LORA]
    assert harness.results["r"].finish_reason is (FinishReason.LENGTH if exists else FinishReason.ERROR)
    assert not runner.adapters


def test_an_impossible_request_does_not_end_the_wait_of_others(make_engine: MakeEngine, tmp_path: Path) -> None:
    """It ends as soon as its adapter is resident, which is leaving already but has another request to serve."""
    runner = ToyRunner()
    harness = make_engine(runner)
    harness.engine.load_adapter(LORA, make_package(tmp_path / "p", "lora"))
    harness.submit("impossible", prompt_of(runner.max_model_len), LORA)
    harness.submit("served", prompt_of(5), LORA)
    harness.engine.unload_adapter(LORA)
    results = harness.run()
    assert results["impossible"].finish_reason is FinishReason.ERROR
    assert results["served"].finish_reason is FinishReason.LENGTH
    assert harness.unloaded == [LORA]


def test_unload_while_loading_without_requests(make_engine: MakeEngine, tmp_path: Path) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    harness.engine.load_adapter(LORA, make_package(tmp_path / "p", "lora"))
    harness.engine.unload_adapter(LORA)
    harness.run()
    assert [type(event) for event in harness.events] == [AdapterLoaded, AdapterUnloaded]
    assert not runner.adapters


def test_unload_of_an_unknown_adapter_is_answered(make_engine: MakeEngine) -> None:
    harness = make_engine()
    harness.engine.unload_adapter(LORA)
    harness.run()
    assert harness.unloaded == [LORA]


def test_load_of_a_resident_adapter_is_answered_again(make_engine: MakeEngine, tmp_path: Path) -> None:
    harness = make_engine()
    package = make_package(tmp_path / "p", "lora")
    first = harness.load(LORA, package)
    assert isinstance(first, AdapterLoaded)
    assert (first.kind, first.num_virtual_tokens) == ("lora", 0)
    assert set(first.seconds) == {"read", "copy", "try"}
    harness.events.clear()
    assert harness.load(LORA, package) == first
    assert harness.engine.stats().adapters_resident == 1


def test_load_while_leaving_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    harness = make_engine()
    package = make_package(tmp_path / "p", "lora")
    harness.load(LORA, package)
    harness.submit("r", prompt_of(5), LORA)
    harness.step()
    harness.engine.unload_adapter(LORA)
    harness.events.clear()
    answer = harness.load(LORA, package)
    assert isinstance(answer, AdapterFailed)
    assert "being removed" in answer.message


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
        assert result.outputs[0].prompt_logprobs is entries
        for position, entry in enumerate(entries[1:]):
            assert entry is not None
            assert entry.token_id == prompt[position + 1]
            assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=1e-5)
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
    harness = make_engine()
    harness.submit("a", prompt_of(5))
    harness.submit("b", prompt_of(7, seed=1))
    harness.run()
    stats = harness.engine.stats()
    assert stats.steps == 4
    assert stats.batch_requests == 8
    assert stats.batch_tokens == 5 + 7 + 6
    assert stats.step_seconds > 0
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
