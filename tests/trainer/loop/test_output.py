"""What becomes of an older run in an output, and when: never before the new one is known to be sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapters.package.reading import read_package
from bases.errors import BaseModelError
from tests.trainer.support import contradiction, losses, make_config
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.loop.checkpoint import checkpoints
from trainer.loop.output import check_output
from trainer.run import train

SHORT = ("max_steps=4", "save_steps=2", "eval_steps=2")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_older_run_outlives_a_new_one_that_cannot_begin(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, *SHORT)
    train(config)
    before = content(tmp_path / "run")
    wrong = {
        "data.path=gone.jsonl": TrainerError,
        "base=nowhere": BaseModelError,
        "target_modules=[gone]": ConfigError,
    }
    for change, error in wrong.items():
        with pytest.raises(error):
            train(make_config(tmp_path, tiny_base, *SHORT, change), overwrite=True)
        assert content(tmp_path / "run") == before


def test_a_first_run_that_cannot_begin_leaves_no_directory(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError):
        train(make_config(tmp_path, tiny_base, "data.path=gone.jsonl"))
    assert not (tmp_path / "run").exists()


def test_what_is_not_of_the_run_is_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path, tiny_base, *SHORT))
    run = tmp_path / "run"
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-2-backup")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-1000")
    (run / "checkpoint-1000" / "trainable.safetensors").unlink()  # another trainer's: complete, but not ours
    (run / "checkpoint-notes.txt").write_text("mine")
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-6")
    (run / "checkpoint-6" / "trainer_state.json").unlink()  # torn
    config = make_config(tmp_path, tiny_base, *SHORT, "keep_checkpoints=1")
    shutil.rmtree(run / "checkpoint-4")
    train(config, resume=True)
    kept = {path.name for path in run.glob("checkpoint-*")}
    assert kept == {"checkpoint-4", "checkpoint-2-backup", "checkpoint-1000", "checkpoint-notes.txt"}
    train(config, overwrite=True)
    kept = {path.name for path in run.glob("checkpoint-*")}
    assert kept == {"checkpoint-4", "checkpoint-2-backup", "checkpoint-notes.txt"}


def test_the_best_and_the_last_checkpoint_are_kept(tiny_base: Path, tmp_path: Path) -> None:
    options = ["max_steps=12", "save_steps=2", "eval_steps=2", "best_checkpoint=true", "keep_checkpoints=1"]
    options += ["method=lora", "learning_rate=0.3", "scheduler=constant", contradiction(tmp_path)]
    train(make_config(tmp_path, tiny_base, *options))
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-12"}


def test_checkpoints_that_are_kept_get_packages(tiny_base: Path, tmp_path: Path) -> None:
    options = ["max_steps=6", "save_steps=2", "eval_steps=2", "keep_checkpoints=9", "package_checkpoints=true"]
    train(make_config(tmp_path, tiny_base, *options))
    run = tmp_path / "run"
    found = {step: read_package(run / f"checkpoint-{step}" / "adapter") for step in (2, 4, 6)}
    assert [name for name, tensor in found[6].tensors.items() if not tensor.equal(found[4].tensors[name])]
    result = read_package(run / "adapter")
    assert all(tensor.equal(found[6].tensors[name]) for name, tensor in result.tensors.items())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}
    for step, package in found.items():
        assert package.manifest is not None
        assert package.manifest.metrics["validation_loss"] == losses[step]
    identity = run / "checkpoint-2" / "run.json"
    assert "package_checkpoints" not in identity.read_text()


def test_the_result_of_another_kind_does_not_stay_beside_the_new_one(tiny_base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(tmp_path, tiny_base, *SHORT, "template=alpaca"))
    assert (run / "chat_template.jinja").exists()
    train(make_config(tmp_path, tiny_base, *SHORT, "method=full"), overwrite=True)
    assert (run / "base" / "model.safetensors").exists()
    assert not (run / "adapter").exists()
    assert not (run / "chat_template.jinja").exists()
    on_itself = make_config(tmp_path, run / "base", *SHORT)
    train(on_itself, overwrite=True)
    assert (run / "base" / "model.safetensors").exists()  # it is what was trained on
    assert (run / "adapter").exists()


def test_an_output_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError, match="is not a directory"):
        check_output(file, resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match=r"cannot be created: .*file is not a directory"):
        check_output(file / "run", resume=False, overwrite=True)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint .*; train without --resume"):
        check_output(tmp_path / "none", resume=True, overwrite=False)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint .*; start anew with --overwrite"):
        check_output(tmp_path, resume=True, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "file"]


def test_a_first_run_clears_nothing(tiny_base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("checkpoint-500/model.safetensors", "tensorboard/events", "base/hotswap.json", "chat_template.jinja"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("another's")
    before = content(run)
    train(make_config(tmp_path, tiny_base, *SHORT))
    assert before.items() <= content(run).items()


def test_a_run_goes_on_from_the_checkpoint_that_is_named(tiny_base: Path, tmp_path: Path) -> None:
    options = ["max_steps=6", "save_steps=2", "eval_steps=2", "keep_checkpoints=9", "best_checkpoint=true"]
    config = make_config(tmp_path, tiny_base, *options)
    curve, run = losses(train(config)), tmp_path / "run"
    package = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    elsewhere = make_config(tmp_path, tiny_base, *options, f"output={tmp_path / 'other'}")
    shutil.copytree(run / "checkpoint-4", tmp_path / "kept")  # under another name
    for named in ("run/checkpoint-4", "kept"):
        other = train(elsewhere, resume=str(tmp_path / named), overwrite=True)
        assert {step: loss for step, loss in losses(other).items() if step > 4} == {5: curve[5], 6: curve[6]}
        assert (other.output / "adapter" / "adapter_model.safetensors").read_bytes() == package
        assert [path.name for path in checkpoints(other.output)][-2:] == ["checkpoint-4", "checkpoint-6"]
    assert len(checkpoints(run)) == 3
    again = train(config, resume=str(run / "checkpoint-2"))
    assert losses(again) == curve
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == package


def test_a_folder_to_resume_from_that_is_none_is_said(tiny_base: Path, tmp_path: Path) -> None:
    train(make_config(tmp_path, tiny_base, "max_steps=1"))
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"there is no directory /nowhere"):
        check_output(tmp_path / "new", resume="/nowhere", overwrite=False)
    with pytest.raises(CheckpointError, match=r"neither a checkpoint of this trainer .* use start_from"):
        check_output(tmp_path / "new", resume=str(run / "adapter"), overwrite=False)
    assert check_output(run, resume=str(run), overwrite=False) == run / "checkpoint-1"
    assert check_output(tmp_path / "new", resume=str(run), overwrite=False) == run / "checkpoint-1"
    shutil.copytree(run, tmp_path / "second")
    with pytest.raises(CheckpointError, match=r"holds a run already, and .*run/checkpoint-1 is of another one"):
        check_output(tmp_path / "second", resume=str(run), overwrite=False)
    (run / "checkpoint-1" / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-1 was cut short"):
        check_output(run, resume=str(run / "checkpoint-1"), overwrite=False)
