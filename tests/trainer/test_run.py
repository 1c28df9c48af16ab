"""Whole runs on a tiny base: learning, packages that peft reads back to the same logits, and exact resumption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.package.golden import read_golden
from adapters.package.manifest import read_manifest
from adapters.package.reading import read_package
from bases.tokenizer import load_tokenizer
from tests import oracle
from tests.factory import make_base
from tests.trainer.every_method import METHODS, WEAK, others_slow
from tests.trainer.support import WORDS, colour_rows, losses, make_config
from trainer.errors import CheckpointError, DataError, TrainingError
from trainer.loop.records import read_metrics
from trainer.loop.session import RunResult
from trainer.progress import SilentDisplay
from trainer.run import train


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_its_package_gives_the_golden_logits(
    tiny_base: Path, trained: Callable[[str], RunResult], method: str
) -> None:
    result = trained(method)
    curve = losses(result)
    assert list(curve) == list(range(1, 41))
    share = 0.9 if method in WEAK else 0.75
    assert sum(curve[step] for step in range(31, 41)) < share * sum(curve[step] for step in range(1, 11))
    assert result.package is not None
    assert sorted(path.name for path in result.package.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "golden.safetensors",
        "hotswap.json",
    ]
    probes = read_golden(result.package)
    assert len(probes) == 3
    for probe in probes:
        got = oracle.logits(tiny_base, result.package, probe.input_ids.tolist())[-1]
        torch.testing.assert_close(got, probe.logits, rtol=1e-5, atol=1e-5)
    untrained: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    assert not torch.allclose(untrained(probes[0].input_ids[None]).logits[0, -1], probes[0].logits, atol=0.1)


@pytest.mark.parametrize("save_steps", [4, pytest.param(5, marks=pytest.mark.slow)])  # in an epoch, and at its end
@pytest.mark.parametrize("method", others_slow(METHODS))
def test_a_resumed_run_is_equal_to_the_last_bit(tiny_base: Path, tmp_path: Path, method: str, save_steps: int) -> None:
    options = [*METHODS[method], "gradient_accumulation=2", f"save_steps={save_steps}", "eval_steps=3"]
    options += ["dropout=0.3"] if method == "lora" else []
    config = make_config(tmp_path, tiny_base, *options)
    whole = train(config)
    assert whole.package is not None
    expected, validation = losses(whole), losses(whole, "eval_loss")
    package = load_file(whole.package / "adapter_model.safetensors")

    shutil.rmtree(whole.output / "checkpoint-8")
    torch.manual_seed(123)
    resumed = train(config, resume=True)
    assert losses(resumed) == expected
    assert losses(resumed, "eval_loss") == validation
    assert resumed.package is not None
    for name, tensor in load_file(resumed.package / "adapter_model.safetensors").items():
        assert torch.equal(tensor, package[name]), name
    assert read_package(whole.package).digest == read_package(resumed.package).digest


def test_the_written_configuration_reproduces_the_run(tiny_base: Path, tmp_path: Path) -> None:
    from trainer.config.loading import load_config

    first = train(make_config(tmp_path, tiny_base))
    again = train(load_config(first.output / "config.yaml", [f"output={tmp_path / 'again'}"], {}))
    assert losses(again) == losses(first)


@pytest.mark.parametrize("quantize", ["nf4", "nf4-dq", "fp4", "int8"])
def test_quantized_bases_learn_across_evaluations(tiny_base: Path, tmp_path: Path, quantize: str) -> None:
    options = [*METHODS["lora"], f"quantize={quantize}", "max_steps=40", "eval_steps=5"]
    result = train(make_config(tmp_path, tiny_base, *options))
    evaluations = losses(result, "eval_loss")
    assert evaluations[40] < 0.8 * evaluations[5]
    norms = losses(result, "grad_norm")
    assert min(norms.values()) > 0
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    assert manifest.training["quantize"] == quantize


def test_bf16_trains_with_full_precision_adapters(tiny_base: Path, tmp_path: Path) -> None:
    for method in ("lora", "prefix", "prompt"):
        options = [f"method={method}", "learning_rate=2e-2", "dtype=bfloat16", "max_steps=20"]
        result = train(make_config(tmp_path / method, tiny_base, *options))
        curve = losses(result)
        assert curve[20] < curve[1]
        assert result.package is not None
        assert {t.dtype for t in read_package(result.package).tensors.values()} == {torch.float32}


@pytest.mark.parametrize("method", [*others_slow(METHODS), "lora-bias"])
def test_what_bf16_trains_is_kept_in_full_precision(tiny_base: Path, tmp_path: Path, method: str) -> None:
    options = METHODS.get(method, ["method=lora", "method.bias=all"])
    train(make_config(tmp_path, tiny_base, *options, "dtype=bfloat16", "max_steps=4"))
    trained = load_file(tmp_path / "run" / "checkpoint-4" / "trainable.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}


@pytest.mark.parametrize("method", others_slow(METHODS))
def test_gradient_checkpointing_changes_no_loss(tiny_base: Path, tmp_path: Path, method: str) -> None:
    plain = train(make_config(tmp_path / "a", tiny_base, *METHODS[method]))
    saving = train(make_config(tmp_path / "b", tiny_base, *METHODS[method], "gradient_checkpointing=true"))
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-5)
    assert losses(plain)[8] != losses(plain)[1]


def test_accumulated_batches_equal_one_large_batch(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": word, "response": "x" * (1 + i % 4)} for i, word in enumerate(WORDS * 8)]
    large = make_config(tmp_path / "a", tiny_base, "batch_size=8", "max_steps=1", rows=rows)
    small = make_config(tmp_path / "b", tiny_base, "batch_size=2", "gradient_accumulation=20", "max_steps=1", rows=rows)
    whole = make_config(tmp_path / "c", tiny_base, "batch_size=40", "max_steps=1", rows=rows)
    expected = losses(train(whole))[1]
    assert losses(train(small))[1] == pytest.approx(expected, rel=1e-5)
    assert losses(train(large))[1] != pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_its_account(tiny_base: Path, tmp_path: Path) -> None:
    rows: list[Any] = [*colour_rows(), {"prompt": "x", "response": ""}]
    shown: list[str] = []

    class Display(SilentDisplay):
        def message(self, text: str) -> None:
            shown.append(text)

    config = make_config(tmp_path, tiny_base, "exact_match_rows=3", rows=rows)
    result = train(config, display=Display())
    assert (result.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((result.output / "config.yaml").read_text())["training"]["learning_rate"] == 5e-4
    record = read_metrics(result.output / "metrics.jsonl")[0]
    assert record["tokens_per_second"] > 0
    assert record["peak_memory_mb"] > 0
    assert set(losses(result, "eval_loss")) == {4, 8}
    assert "left out 1 row: empty response" in shown
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    assert (manifest.kind, manifest.seed, manifest.base.name) == ("lora", 0, tiny_base.name)
    assert manifest.data is not None
    assert manifest.data.rows == 40
    assert manifest.metrics["validation_loss"] == losses(result, "eval_loss")[8]
    assert manifest.losses is not None
    assert dict(manifest.losses.train) == losses(result, "loss")
    assert dict(manifest.losses.validation) == losses(result, "eval_loss")
    assert 0 <= manifest.metrics["exact_match"] <= 1
    assert manifest.special_tokens["eos_token"] == "<|im_end|>"
    assert str(tmp_path) not in (result.package / "hotswap.json").read_text()
    assert str(tmp_path) not in (result.package / "adapter_config.json").read_text()


def test_the_best_checkpoint_may_be_the_one_that_is_exported(tiny_base: Path, tmp_path: Path) -> None:
    options = ["method=lora", "learning_rate=0.05", "max_steps=30", "eval_steps=3", "save_steps=3"]
    result = train(make_config(tmp_path, tiny_base, *options, "best_checkpoint=true", "scheduler=constant"))
    evaluations = losses(result, "eval_loss")
    best = min(evaluations, key=lambda step: evaluations[step])
    assert result.metrics["validation_loss"] == evaluations[best]
    assert result.package is not None
    saved = load_file(result.output / f"checkpoint-{best}" / "trainable.safetensors")
    exported = read_package(result.package).tensors
    assert all(torch.equal(exported[name.replace(".default", "")], tensor) for name, tensor in saved.items())


def test_an_output_that_holds_a_run_is_not_overwritten_by_mistake(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "max_steps=2")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        train(config, resume=True)
    first = losses(train(config))
    with pytest.raises(CheckpointError, match="go on with --resume, or start anew with --overwrite"):
        train(config)
    assert losses(train(config, overwrite=True)) == first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("learning_rate=1e-3", "training.learning_rate was 0.0005 and is now 0.001"),
        ("method=prompt", "method.type was 'lora' and is now 'prompt'"),
        ("max_length=99", "data.max_length was 1024 and is now 99"),
    ],
)
def test_a_changed_run_is_not_resumed(tiny_base: Path, tmp_path: Path, change: str, words: str) -> None:
    train(make_config(tmp_path, tiny_base, "max_steps=2"))
    with pytest.raises(CheckpointError, match=words):
        train(make_config(tmp_path, tiny_base, "max_steps=2", change), resume=True)


def test_changed_data_is_not_resumed_but_other_intervals_are(tiny_base: Path, tmp_path: Path) -> None:
    first = train(make_config(tmp_path, tiny_base, "max_steps=2"))
    again = train(make_config(tmp_path, tiny_base, "max_steps=2", "eval_steps=1", "log_steps=2"), resume=True)
    assert (again.steps, losses(again)) == (2, losses(first))  # it was done already: the package is written again
    with pytest.raises(CheckpointError, match="the data changed since checkpoint-2"):
        train(make_config(tmp_path, tiny_base, "max_steps=2", rows=colour_rows(40)), resume=True)


def test_half_written_checkpoints_are_passed_over(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base)
    expected = losses(train(config))
    (tmp_path / "run" / "checkpoint-8" / "trainer_state.json").write_text("{")
    assert losses(train(config, resume=True)) == expected


def test_a_loss_that_is_not_finite_stops_the_run(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "learning_rate=1e30", "scheduler=constant", "max_steps=20")
    with pytest.raises(TrainingError, match=r"lower training\.learning_rate"):
        train(config)
    assert not (tmp_path / "run" / "adapter").exists()


def test_bad_data_leaves_no_output_behind(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has columns of no known shape"):
        train(make_config(tmp_path, tiny_base, rows=[{"prompt": "a"}]))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_plain_text_trains_a_base_without_a_chat_template(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    result = train(make_config(tmp_path, base, "max_steps=1", rows=[{"text": f"document {i}"} for i in range(12)]))
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    assert manifest.chat_template_sha256 is None
    first = read_golden(result.package)[0]
    torch.testing.assert_close(oracle.logits(base, result.package, first.input_ids.tolist())[-1], first.logits)
    assert "<|im_start|>" not in load_tokenizer(base).decode(first.input_ids)
