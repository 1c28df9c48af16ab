"""Plans of runs that read: the memory against torch's allocator, the steps against the real loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.plan.support import most_allocated
from tests.trainer.pooling.support import class_rows, data_of, tag_rows
from tests.trainer.support import make_config
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError
from trainer.plan.model_presets import model_preset
from trainer.plan.planning import plan_preset, plan_run
from trainer.plan.reading import ReadWorkload, sampling
from trainer.plan.report import run_text
from trainer.plan.timing import measure
from trainer.pooling.trainer import PooledTrainer
from trainer.run import train

NEAR = 0.03  # of the allocator's peak; the real one also holds a few small tensors of the loop
TEXT = "some words that are quite long, so that there is something to read. "
PAIRS = [{"anchor": TEXT + str(i), "positive": TEXT * (1 + i % 3), "negative": f"{i}"} for i in range(24)]
CASES: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "classes": (
        ["task=classification", "method=lora"],
        [{**row, "text": TEXT + row["text"]} for row in class_rows(24)],
    ),
    "tags": (["task=token-classification", "method=prefix", "tokens=4"], tag_rows(24)),
    "vectors": (["task=embedding", "method=lora", "gradient_checkpointing=true"], PAIRS),
}


def config_of(folder: Path, base: Path, case: str, *more: str) -> TrainConfig:
    settings, rows = CASES[case]
    return make_config(folder, base, *settings, *more, rows=rows)


def allocated(config: TrainConfig, base: Path) -> int:
    """The most bytes that steps of the largest batch held beside the loaded model, by torch's own account."""
    data = data_of(config, base)
    work = ReadWorkload(config, data)
    largest = work.sample(1)[:1]
    trainer = sampling(data)(config, work, largest)
    trainer.chosen = [item for step in largest for item in step.items]
    return most_allocated(trainer.train)


@pytest.mark.parametrize("case", [*CASES])
def test_memory_is_what_the_allocator_gives_out(tiny_base: Path, tmp_path: Path, case: str) -> None:
    config = config_of(tmp_path, tiny_base, case, "max_steps=2", "eval_steps=null", "save_steps=null")
    plan = plan_run(config, 0)
    held = plan.memory.weights + plan.memory.adapter
    assert allocated(config, tiny_base) == pytest.approx(plan.memory.peak - held, rel=NEAR)
    package = train(config).package
    assert package
    tensors = load_file(package / "adapter_model.safetensors").values()
    assert plan.serving.adapter == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("case", [*CASES])
def test_the_steps_are_those_that_the_run_will_train_on(
    tiny_base: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, tiny_base, case, "max_steps=4")
    work = ReadWorkload(config, data_of(config, tiny_base))
    seen: list[int] = []
    original = PooledTrainer.training_step

    def watched(self: PooledTrainer, model: object, inputs: dict[str, Any], *more: object) -> object:
        seen.append(inputs["input_ids"].numel())
        return original(self, model, inputs, *more)

    monkeypatch.setattr(PooledTrainer, "training_step", watched)
    train(config)
    assert [step.padded for step in work.steps][:4] == seen


def test_a_plan_measures_real_steps_and_is_told(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_base, "vectors", "max_steps=20")
    plan = plan_run(config, 2)
    assert plan.timing is not None
    assert (plan.timing.steps, plan.timing.measured_steps, plan.timing.evaluations) == (20, 2, 5)
    text = run_text(plan)
    assert text.startswith("embedding of lora on ")
    assert f"on batches of {plan.batch.rows} texts of {plan.batch.length} tokens, adamw" in text
    assert plan.batch.rows == 12
    assert not (tmp_path / "run").exists()


def test_measuring_trains_on_what_it_chose(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_base, "classes", "max_steps=20", "data.validation=0", "eval_steps=null")
    data = data_of(config, tiny_base)
    timing = measure(config, data, ReadWorkload(config, data), 3, sampling(data))
    assert (timing.measured_steps, timing.evaluations) == (3, 0)
    assert torch.tensor([timing.fastest, timing.seconds, timing.slowest]).diff().ge(0).all()


def test_a_shape_knows_no_labels(tmp_path: Path) -> None:
    from tests.trainer.plan.support import shape_config

    with pytest.raises(ConfigError, match="a shape has no data"):
        plan_preset(model_preset("smollm2-135m"), shape_config("task=classification"))
