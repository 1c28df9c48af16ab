"""TensorBoard's event files, read back by TensorBoard itself."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import make_config
from trainer.errors import ConfigError
from trainer.loop.records import read_metrics
from trainer.run import train

pytest.importorskip("tensorboard", reason="tensorboard is an extra")


def scalars(folder: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_what_is_logged_is_in_the_event_files_once_though_the_run_was_resumed(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "tensorboard=true")
    result = train(config)
    shutil.rmtree(result.output / "checkpoint-8")
    train(config, resume=True)
    records = read_metrics(result.output / "metrics.jsonl")
    for tag, key in (("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("eval/loss", "eval_loss")):
        expected = {record["step"]: record[key] for record in records if key in record}
        assert scalars(result.output / "tensorboard", tag) == pytest.approx(expected, rel=1e-6)


def test_without_tensorboard_the_extra_is_named(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hotswap\[tensorboard\]'"):
        train(make_config(tmp_path, tiny_base, "tensorboard=true"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("wandb", "wandb is not installed"), ("notes", "unknown tracker 'notes'; choose from ")]
)
def test_trackers_that_cannot_be_used_are_said_so(tiny_base: Path, tmp_path: Path, name: str, words: str) -> None:
    if name == "wandb" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    with pytest.raises(ConfigError, match=words):
        train(make_config(tmp_path, tiny_base, f"trackers=[{name}]"))


def test_trackers_of_transformers_receive_the_logs(tiny_base: Path, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, tiny_base, "trackers=[tensorboard]", "max_steps=2"))
    (folder,) = (result.output / "runs").iterdir()
    assert set(scalars(folder, "train/loss")) == {1, 2}
