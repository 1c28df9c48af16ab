"""Adapters that come and go while an engine steps, on a toy model."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from server.adapter_key import AdapterKey
from server.engine.messages import AdapterFailed, AdapterLoaded, AdapterUnloaded, FinishReason
from server.model.prepared import PreparedAdapter
from tests.server.engine.conftest import MakeEngine
from tests.server.engine.harness import DEADLINE
from tests.server.engine.toy import LORA, PREFIX, PROMPT, expect_greedy, load_all, prompt_of
from tests.server.engine.toy_runner import ToyRunner, make_package


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

        def prepare(self, path: Path, digest: str = "") -> PreparedAdapter:
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
