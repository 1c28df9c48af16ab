from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from tests.trainer.support import make_config
from trainer.base_model import load_vocabulary
from trainer.config.schema import TrainConfig
from trainer.data.training_data import TrainingData, load_data
from trainer.loop.trainer import AdapterTrainer
from trainer.plan.planning import plan_run
from trainer.plan.timing import Workload, measure
from trainer.run import train


def rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": "x" * (1 + 7 * i % 90), "response": "yes" if i % 2 else "no"} for i in range(count)]


def by_epochs(config: TrainConfig) -> TrainConfig:
    return msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, max_steps=None))


def workload(config: TrainConfig) -> tuple[Workload, TrainingData]:
    tokenizer, end_ids = load_vocabulary(config)
    data = load_data(config.data, tokenizer, end_ids, config.training.seed)
    return Workload(config, data), data


@pytest.mark.parametrize("settings", [[], ["gradient_accumulation=2"], ["packing=true", "max_length=256"]])
def test_the_steps_are_those_that_the_run_will_train_on(
    settings: list[str], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the real loop is given, step by step."""
    config = by_epochs(make_config(tmp_path, tiny_base, "epochs=1", *settings, rows=rows(58)))
    work, _ = workload(config)
    seen: list[tuple[int, int]] = []
    original = AdapterTrainer.training_step

    def watched(self: AdapterTrainer, model: object, inputs: dict[str, object], *more: object) -> object:
        seen.append(tuple(inputs["input_ids"].shape))  # type: ignore[attr-defined]
        return original(self, model, inputs, *more)

    monkeypatch.setattr(AdapterTrainer, "training_step", watched)
    result = train(config)
    assert result.steps == work.total_steps == len(work.steps)
    planned = [(len(batch), max(length for _, length in batch)) for step in work.steps for batch in step.batches]
    assert planned == seen


def test_the_whole_run_is_what_its_epochs_hold(tiny_base: Path, tmp_path: Path) -> None:
    config = by_epochs(make_config(tmp_path, tiny_base, "epochs=3", rows=rows(48)))
    work, data = workload(config)
    assert work.total_steps == 3 * 10
    assert work.tokens == pytest.approx(3 * sum(map(len, data.train)))
    batch = work.largest_batch()
    assert (batch.rows, batch.length) == (4, max(map(len, data.train)))


def test_the_sample_goes_from_short_to_long_after_the_longest(tiny_base: Path, tmp_path: Path) -> None:
    work, _ = workload(make_config(tmp_path, tiny_base, rows=rows(48)))
    first, *middles = work.sample(4)
    sizes = [step.padded for step in middles]
    assert first.padded == max(step.padded for step in work.steps)
    assert sizes == sorted(sizes)
    assert len(sizes) == 4
    assert all(len(step.items) == 4 for step in [first, *middles])


def test_measuring_trains_really_and_leaves_nothing_behind(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "max_steps=20", rows=rows(48))
    before = sorted(path.name for path in tmp_path.iterdir())
    work, data = workload(config)
    began = time.monotonic()
    timing = measure(config, data, work, 3)
    assert (timing.measured_steps, timing.steps, timing.evaluations) == (3, 20, 5)
    assert 0 < timing.measured_seconds < time.monotonic() - began
    assert timing.fastest <= timing.seconds <= timing.slowest
    assert timing.tokens_per_second == pytest.approx(timing.tokens / timing.train_seconds, rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_run_with_fewer_rows_than_a_batch_is_measured_too(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "validation=0", "eval_steps=null", "max_steps=2", rows=rows(3))
    timing = plan_run(config, 2).timing
    assert timing is not None
    assert (timing.evaluations, timing.evaluation_seconds) == (0, 0.0)


@pytest.mark.parametrize("method", ["prefix", "adalora", "full"])
def test_other_methods_are_measured_too(method: str, tiny_base: Path, tmp_path: Path) -> None:
    plan = plan_run(make_config(tmp_path, tiny_base, f"method={method}"), 1)
    assert plan.timing is not None
    assert plan.timing.seconds > 0
    assert (plan.serving.adapter is None) == (method == "full")


def test_no_steps_no_time(tiny_base: Path, tmp_path: Path) -> None:
    assert plan_run(make_config(tmp_path, tiny_base), 0).timing is None
