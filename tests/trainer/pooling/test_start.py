"""Tasks that begin with an adapter there is already, and with its head where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.every_method import METHODS
from tests.trainer.pooling.support import class_rows, data_of, tag_rows
from tests.trainer.support import WORDS, losses, make_config
from trainer.base_model import load_base
from trainer.errors import ConfigError
from trainer.loop.session import RunResult
from trainer.loop.start import read_start
from trainer.methods import apply_method
from trainer.pooling.model import PooledModel
from trainer.pooling.package import packaged
from trainer.pooling.start import begin_pooled
from trainer.run import train

PAIRS = [{"anchor": f"{word} {i}", "positive": f"{i} {word}"} for i, word in enumerate(WORDS * 3)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": class_rows(), "token-classification": tag_rows(), "embedding": PAIRS,
}  # fmt: skip


def run(folder: Path, base: Path, task: str, *options: str, method: str = "lora") -> RunResult:
    chosen = [f"task={task}"] if task else []
    return train(
        make_config(folder, base, *chosen, *METHODS[method], "max_steps=4", *options, rows=ROWS.get(task)),
    )


def begun(folder: Path, base: Path, start: Path, task: str, method: str = "lora") -> tuple[dict[str, Any], list[str]]:
    """The tensors that a run of ``task`` would export before its first step, and what it said."""
    config = make_config(folder, base, f"task={task}", *METHODS[method], rows=ROWS[task])
    assert config.reading
    data, loaded = data_of(config, base), load_base(config)
    model = PooledModel(
        apply_method(loaded, config.method), loaded, getattr(config.reading, "pooling", "last"), data.num_outputs
    )
    said: list[str] = []
    method_settings = {"type": "lora"}
    begin_pooled(data.labels, said.append, read_start(start), model, loaded, method_settings)
    return packaged(model, config.reading)[1], said


@pytest.mark.parametrize("task", ROWS)
def test_the_package_of_a_task_is_gone_on_with(tiny_base: Path, tmp_path: Path, task: str) -> None:
    result = run(tmp_path / "a", tiny_base, task)
    assert result.package
    saved = load_file(result.package / "adapter_model.safetensors")
    for start in (result.package, result.output / "checkpoint-4"):
        tensors, said = begun(tmp_path / start.name, tiny_base, start, task)
        assert not said
        assert tensors.keys() == saved.keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in tensors.items())


def test_a_run_goes_on_learning(tiny_base: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "a", tiny_base, "classification", "max_steps=12")
    again = run(tmp_path / "b", tiny_base, "classification", f"start_from={first.package}")
    assert losses(again)[1] < 0.7 * losses(first)[1]


def test_an_adapter_that_writes_is_a_start_without_a_head(tiny_base: Path, tmp_path: Path) -> None:
    written = run(tmp_path / "a", tiny_base, "")
    assert written.package
    tensors, said = begun(tmp_path / "b", tiny_base, written.package, "classification")
    saved = load_file(written.package / "adapter_model.safetensors")
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)
    assert said == [f"start_from: {written.package} has no head; that of this task begins afresh"]


def test_other_labels_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "a", tiny_base, "classification")
    rows = [{"text": "x", "label": name} for name in ("red", "blue", "pink", "white", "grey", "black")]
    with pytest.raises(ConfigError, match=r"the labels there are 'black', .*; name those there with task.labels"):
        train(make_config(tmp_path / "b", tiny_base, "task=classification", *METHODS["lora"], "data.validation=0",
                          "eval_steps=null", f"start_from={result.package}", rows=rows))  # fmt: skip
    with pytest.raises(ConfigError, match="start_from: the labels there are"):
        run(tmp_path / "c", tiny_base, "token-classification", f"start_from={result.package}")
    with pytest.raises(ConfigError, match="there has 6 outputs, and this task has 4"):
        run(tmp_path / "d", tiny_base, "token-classification", f"start_from={result.output / 'checkpoint-4'}")
    with pytest.raises(ConfigError, match="start_from: peft_type is 'LORA' there and 'IA3' here"):
        run(tmp_path / "e", tiny_base, "classification", f"start_from={result.package}", method="ia3")
