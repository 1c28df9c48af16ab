from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from adapters.package.reading import read_package
from tests.trainer.support import WORDS, colour_rows, make_config
from trainer.base_model import load_base
from trainer.errors import CheckpointError, ConfigError
from trainer.loop.checkpoint import load_parameters
from trainer.loop.records import read_metrics
from trainer.methods import adapter_of, apply_method
from trainer.methods.adalora import dynamics_of
from trainer.run import train

OPTIONS = ["method=adalora", "init_r=6", "target_r=2", "learning_rate=5e-2", "target_modules=[q_proj, down_proj]"]


def test_the_penalty_is_what_peft_adds_to_a_loss_of_its_own(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(make_config(tmp_path, tiny_base))
    model = apply_method(base, make_config(tmp_path, tiny_base, *OPTIONS, "orth_reg_weight=0.7").method, 10)
    dynamics = dynamics_of(model)
    assert dynamics is not None
    ids = torch.arange(8)[None]
    with_penalty = model(input_ids=ids, labels=ids).loss
    plain = model.base_model.model(input_ids=ids, labels=ids).loss
    assert dynamics.penalty().item() == pytest.approx((with_penalty - plain).item(), rel=1e-5)
    assert dynamics.penalty().item() > 0.5


def test_the_penalty_is_trained_on_and_not_reported(tiny_base: Path, tmp_path: Path) -> None:
    first, weights = [], []
    for weight in (0, 5):
        options = [*OPTIONS, f"orth_reg_weight={weight}", "max_steps=12"]
        result = train(make_config(tmp_path / str(weight), tiny_base, *options))
        first.append(read_metrics(result.output / "metrics.jsonl")[0]["loss"])
        weights.append(load_file(result.output / "checkpoint-12" / "trainable.safetensors"))
    assert first[0] == first[1]
    distances = []
    for tensors in weights:
        factors = [tensor for name, tensor in tensors.items() if "lora_A" in name]
        distances.append(sum(float((f @ f.T - torch.eye(len(f))).norm()) for f in factors))
    assert distances[1] < 0.8 * distances[0]


@pytest.mark.slow
def test_accumulated_batches_weigh_the_penalty_and_the_components_as_one_large_batch(
    tiny_base: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": word, "response": "x" * (1 + i % 4)} for i, word in enumerate(WORDS * 8)]
    found = []
    for name, options in (("small", ["batch_size=2", "gradient_accumulation=20"]), ("whole", ["batch_size=40"])):
        config = make_config(tmp_path / name, tiny_base, *OPTIONS, *options, "max_steps=3", "tinit=0", rows=rows)
        found.append(load_file(train(config).output / "checkpoint-3" / "method.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=2e-3, atol=1e-7)


def test_ranks_shrink_to_the_target_and_the_package_holds_what_is_left(tiny_base: Path, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, tiny_base, *OPTIONS, "max_steps=20", "tfinal=5"))
    assert result.package is not None
    package = read_package(result.package)
    kept = sum(len(tensor) for name, tensor in package.tensors.items() if name.endswith("lora_E"))
    assert kept == 2 * 4  # target_r for each of two modules in two layers
    assert all((tensor != 0).all() for name, tensor in package.tensors.items() if name.endswith("lora_E"))


def test_a_checkpoint_from_between_two_allocations_is_exported_as_it_answers(tiny_base: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, "max_steps=20", "delta_t=7", "eval_steps=1", "save_steps=1", "keep_checkpoints=20"]
    train(make_config(tmp_path, tiny_base, *options))
    config = make_config(tmp_path / "again", tiny_base, *OPTIONS)
    model = apply_method(load_base(config), config.method, 20)
    load_parameters(model, tmp_path / "run" / "checkpoint-9")  # ranks were allocated after step 7
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        saved, tensors = adapter_of(model)
    allocated = model.active_peft_config.rank_pattern
    assert sum(map(sum, saved["rank_pattern"].values())) > sum(map(sum, allocated.values()))  # some have grown again
    arguments = {**saved, "base_model_name_or_path": None}
    fresh = get_peft_model(load_base(config).model, AdaLoraConfig(**arguments))
    set_peft_model_state_dict(fresh, tensors)
    with torch.no_grad():
        torch.testing.assert_close(fresh(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["target_r=6"], r"method\.target_r: 6 must be below init_r, which is 6"),
        (["tinit=15", "tfinal=5"], "15 first and 5 last steps leave none of 20"),
        (["max_steps=1"], "leave none of 1"),
    ],
)
def test_schedules_that_leave_nothing_to_do_are_refused(
    tiny_base: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(make_config(tmp_path, tiny_base, *OPTIONS, "max_steps=20", *options))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_checkpoint_without_the_allocators_state_is_not_resumed(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, *OPTIONS, rows=colour_rows())
    output = train(config).output
    for folder in output.glob("checkpoint-*"):
        (folder / "method.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"method\.safetensors cannot be read"):
        train(config, resume=True)
