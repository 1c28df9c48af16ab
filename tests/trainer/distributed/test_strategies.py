"""Strategies that divide a run, where there is one process and nobody to divide it with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.support import make_config
from trainer.config.schema import TrainConfig
from trainer.distributed.strategies import check_processes, deepspeed_config, undivided
from trainer.errors import ConfigError


def config_of(tmp_path: Path, *overrides: str) -> TrainConfig:
    return make_config(tmp_path, tmp_path, *overrides)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "fsdp"])
def test_one_process_trains_without_them_and_says_so(tmp_path: Path, strategy: str) -> None:
    config = config_of(tmp_path, f"strategy={strategy}")
    check_processes(config)
    alone, word = undivided(config)
    assert alone == config_of(tmp_path)
    assert word.startswith(f"strategy {strategy}: one process divides nothing")
    assert ("needs no DeepSpeed" in word) == (strategy != "fsdp")
    assert undivided(alone) == (alone, "")


@pytest.mark.parametrize("task", ["classification", "token-classification", "regression", "embedding"])
def test_tasks_that_read_are_copied_to_processes_and_not_divided(tmp_path: Path, task: str) -> None:
    check_processes(config_of(tmp_path, f"task={task}"), 2)
    with pytest.raises(ConfigError, match=f"training.strategy: {task} is not divided among processes; use ddp"):
        check_processes(config_of(tmp_path, f"task={task}", "strategy=fsdp"), 2)


def test_several_processes_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, "strategy=zero2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert undivided(config) == (config, "")
    with pytest.raises(ConfigError, match="zero2 needs CUDA devices; on a CPU use fsdp or ddp"):
        check_processes(config)
    with pytest.raises(ConfigError, match="fsdp trains in bfloat16 or float32"):
        check_processes(config_of(tmp_path, "strategy=fsdp", "fp16=true"))
    handed_on = deepspeed_config(config)
    assert handed_on is not None
    assert (handed_on["zero_optimization"]["stage"], handed_on["fp16"]) == (2, {"enabled": "auto"})
