"""Adapters are verified when they load: recorded logits, finiteness, effect; on real packages saved by peft."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from adapters.checkpoints import checkpoint
from adapters.package.golden import GoldenLogits, encode_golden
from adapters.package.manifest import BaseRef, Manifest
from adapters.package.writing import write_package
from bases.fingerprint import base_fingerprint
from server.engine.messages import AdapterFailed, AdapterLoaded
from tests import oracle
from tests.factory import make_adapter
from tests.server.engine.driver import Driver, prompt_of
from tests.server.keys import key_of

PROMPTS = [prompt_of(seed, length) for seed, length in ((1, 9), (2, 23), (3, 14))]


def recorded(base: Path, source: Path, path: Path, *, kind: str, of: Path | None = None) -> Path:
    """The package ``source`` with a manifest and the logits that peft gives for ``of`` (itself by default)."""
    probes = [GoldenLogits(torch.tensor(ids), oracle.logits(base, of or source, ids)[-1]) for ids in PROMPTS]
    manifest = Manifest(
        kind=kind,
        base=BaseRef("tiny", base_fingerprint(base)),
        created=datetime.now(UTC),
        training={"quantize": "none", "dtype": "float32"},
    )
    config = json.loads((source / "adapter_config.json").read_text())
    write_package(path, config, load_file(source / "adapter_model.safetensors"), manifest, probes)
    return path


def load(driver: Driver, path: Path, *, allow_noop: bool = False, name: str = "new") -> AdapterLoaded | AdapterFailed:
    key = key_of(name, path)
    driver.engine.load_adapter(key, path, allow_noop=allow_noop)
    for _ in range(3000):
        driver_events = driver.engine.step()
        for event in driver_events:
            if isinstance(event, (AdapterLoaded, AdapterFailed)):
                return event
    raise AssertionError("no answer")


@pytest.mark.parametrize("name", ["lora-r8", "prefix-21", "prompt-7", "lora-bias-all"])
def test_recorded_logits_are_replayed(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], name: str, tmp_path: Path
) -> None:
    driver = make_driver()
    driver.load("other", tiny_adapters["lora-r4"])
    event = load(driver, recorded(tiny_base, tiny_adapters[name], tmp_path / "p", kind=name.split("-", 1)[0]))
    assert isinstance(event, AdapterLoaded), event
    assert event.warnings == []
    assert event.seconds["try"] > 0


@pytest.mark.parametrize("of", ["lora-r4", "lora-r8-attention"])
def test_other_logits_than_the_recorded_are_refused(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], of: str, tmp_path: Path
) -> None:
    driver = make_driver()
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora", of=tiny_adapters[of])
    event = load(driver, package)
    assert isinstance(event, AdapterFailed)
    assert "does not answer as it did after its training" in event.message
    assert "allowed is 0.01" in event.message
    assert driver.engine.runner.adapter_bytes == 0


def test_a_small_difference_of_the_scale_is_seen(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora")
    config = json.loads((package / "adapter_config.json").read_text())
    (package / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 1.25}))
    event = load(make_driver(), package)
    assert isinstance(event, AdapterFailed)
    assert "allowed" in event.message


def test_an_adapter_without_effect_is_refused_unless_allowed(
    make_driver: Callable[..., Driver], tiny_base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    package = make_adapter(tiny_base, tmp_path / "noop", config, std=0.0)
    driver = make_driver()
    refused = load(driver, package)
    assert isinstance(refused, AdapterFailed)
    assert "answers exactly as the base does" in refused.message
    assert "allow_noop" in refused.message
    loaded = load(driver, package, allow_noop=True)
    assert isinstance(loaded, AdapterLoaded)
    assert len(loaded.warnings) == 1


def test_logits_that_are_not_finite_are_refused(
    make_driver: Callable[..., Driver], tiny_base: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM")
    package = make_adapter(tiny_base, tmp_path / "wild", config, std=1e19)
    driver = make_driver()
    event = load(driver, package)
    assert isinstance(event, AdapterFailed)
    assert "not finite" in event.message
    driver.submit("base", PROMPTS[1], None)
    driver.run()
    driver.check("base", PROMPTS[1], None)


def test_requests_go_on_while_an_adapter_is_tried_out(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    # 16 blocks of 4 positions: the verification needs blocks that the request holds, and takes them by preemption
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4
    driver = make_driver(kv_cache_gb=16 * block_bytes / 1e9)
    key = driver.load("lora-r4", tiny_adapters["lora-r4"])
    driver.submit("busy", PROMPTS[1], key, 40)
    for _ in range(12):
        driver.step()
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora")
    driver.engine.load_adapter(key_of("new", package), package)
    driver.engine.adapters._loader.submit(int).result()  # the package is read, before the request has ended
    new = driver.wait_for("new", package)
    assert driver.engine.scheduler.requests, "the request is still running"
    driver.submit("after", PROMPTS[0], new)
    driver.run()
    assert driver.engine.stats().preemptions > 0
    driver.check("busy", PROMPTS[1], tiny_adapters["lora-r4"], 40)
    driver.check("after", PROMPTS[0], tiny_adapters["lora-r8"])


def test_a_cache_too_small_for_the_probes_is_told(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    block_bytes = 4 * 2 * 2 * (16 + 16) * 4
    driver = make_driver(kv_cache_gb=5 * block_bytes / 1e9)
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora")
    event = load(driver, package)
    assert isinstance(event, AdapterLoaded)
    assert event.warnings == ["the adapter was not verified on every prompt: the KV cache is too small for them"]


@pytest.mark.parametrize(
    "case",
    [([5, 400], "recorded prompt holds ids beyond the 320 tokens"), ([5] * 600, "they are longer than one step")],
)
def test_recorded_prompts_that_no_step_computes(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path], tmp_path: Path, case: tuple[list[int], str]
) -> None:
    package = Path(shutil.copytree(tiny_adapters["lora-r8"], tmp_path / "p"))
    (package / "golden.safetensors").write_bytes(encode_golden([GoldenLogits(torch.tensor(case[0]), torch.rand(500))]))
    event = load(make_driver(), package)
    assert case[1] in (event.message if isinstance(event, AdapterFailed) else " ".join(event.warnings))


def test_another_quantization_than_the_trainings_is_told(
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora")
    event = load(make_driver(quantize="nf4"), package)
    assert isinstance(event, AdapterLoaded), event
    (warning,) = event.warnings
    assert "Train on the base as it is served" in warning


def count_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who computes a module from now on, module by module: the thread's name."""
    computed: list[str] = []

    def counted() -> None:
        computed.append(threading.current_thread().name)
        checkpoint()

    for where in ("adapted_modules", "lean.decoder", "lean.parts"):
        monkeypatch.setattr(f"server.model.{where}.checkpoint", counted)
    return computed


def test_running_requests_wait_for_a_part_of_a_pass_only(
    make_driver: Callable[..., Driver],
    tiny_base: Path,
    tiny_adapters: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = make_driver()
    old = driver.load("lora-r4", tiny_adapters["lora-r4"])
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora")
    key = key_of("lora-r8", package)
    driver.submit("busy", PROMPTS[1], old, 300, speculation=False)
    monkeypatch.setattr("server.engine.step_budget._LONGEST_PAUSE", 0.0)
    computed, verified = count_parts(monkeypatch), 0
    driver.engine.load_adapter(key, package)
    while not any(isinstance(event, AdapterLoaded) and event.key == key for event in driver.events):
        told = len(driver.tokens("busy"))
        driver.step()
        driver.engine.check_integrity()
        assert len(driver.tokens("busy")) == told + 1, "the request goes on in every step"
        assert computed.count("slices") <= 1, "and waits for one module"
        verified += computed.count("slices")
        computed.clear()
    assert verified > 5 * 10, "five passes over all modules"
    driver.submit("after", PROMPTS[0], key)
    driver.run()
    driver.check("busy", PROMPTS[1], tiny_adapters["lora-r4"], 300)
    driver.check("after", PROMPTS[0], tiny_adapters["lora-r8"])


def test_a_pass_is_whole_where_nobody_waits(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.step_budget._LONGEST_PAUSE", 0.0)
    driver = make_driver()
    computed, most = count_parts(monkeypatch), 0
    driver.engine.load_adapter(key_of("a", tiny_adapters["lora-r8"]), tiny_adapters["lora-r8"])
    while not driver.events:
        driver.step()
        most = max(most, len(computed))
        computed.clear()
    assert most > 10


def begin_pass(driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step until the verification of ``path`` is held up within a pass."""
    monkeypatch.setattr("server.engine.step_budget._LONGEST_PAUSE", 0.0)
    before = driver.engine.stats().kv_blocks_used
    driver.engine.load_adapter(key_of("new", path), path)
    for _ in range(3000):
        driver.step()
        if driver.engine.stats().kv_blocks_used > before + 2:  # more than a request takes meanwhile
            return
        before = driver.engine.stats().kv_blocks_used
    raise AssertionError("no pass began")


@pytest.mark.parametrize("after", [5, 20, 35])
def test_an_adapter_may_go_while_another_is_verified_beside_it(  # noqa: PLR0917 - fixtures
    make_driver: Callable[..., Driver], tiny_base: Path, tiny_adapters: Mapping[str, Path],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int,
) -> None:  # fmt: skip
    driver = make_driver()
    beside = driver.load("lora-r4", tiny_adapters["lora-r4"])
    driver.submit("busy", PROMPTS[1], None, 300)
    package = recorded(tiny_base, tiny_adapters["lora-r8"], tmp_path / "p", kind="lora")
    begin_pass(driver, package, monkeypatch)
    for _ in range(after):
        driver.step()
    driver.engine.unload_adapter(beside)
    new = driver.load("new", package)
    driver.submit("after", PROMPTS[0], new)
    driver.run()
    driver.check("after", PROMPTS[0], tiny_adapters["lora-r8"])


def test_an_engine_closes_amid_a_pass(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver()
    driver.submit("busy", PROMPTS[1], None, 20)
    begin_pass(driver, tiny_adapters["lora-r8"], monkeypatch)
    driver.engine.adapters.close()
    driver.engine.scheduler.check_integrity()
    assert driver.engine.stats().kv_blocks_used == sum(len(r.block_table) for r in driver.engine.scheduler.running)


def test_what_was_tried_is_not_tried_again_by_an_engine_that_computes_alike(
    make_driver: Callable[..., Driver], tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    package = tiny_adapters["lora-r8"]
    makes: list[tuple[dict[str, str], bool]] = [({}, True), ({}, False), ({"kv_dtype": "float16"}, True)]
    for settings, tried in makes:
        driver = make_driver(tried_dir=str(tmp_path), **settings)
        event = load(driver, package)
        assert isinstance(event, AdapterLoaded), event
        assert (event.seconds["try"] > 0.001) == tried, event.seconds
    driver.engine.unload_adapter(key_of("new", package))
    event = load(driver, package)
    assert isinstance(event, AdapterLoaded)
    assert event.seconds["try"] < 0.001
