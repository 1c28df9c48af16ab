"""Runs that begin with an adapter there is already: the same model, in every method, from a package or a checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.package.golden import read_golden
from tests import oracle
from tests.factory import make_base
from tests.trainer.every_method import METHODS
from tests.trainer.preference.support import judged_rows, pair_rows, preference_config
from tests.trainer.support import losses, make_config
from trainer.base_model import load_base
from trainer.errors import CheckpointError, ConfigError
from trainer.export.result import golden_logits
from trainer.loop.session import RunResult
from trainer.loop.start import begin_with, read_start
from trainer.methods import apply_method
from trainer.run import train

# Their packages hold what an encoder made, or ranks that are no longer those of a beginning.
ENCODED = ("prefix", "p_tuning", "p_tuning-lstm")
FROM_CHECKPOINTS_ONLY = (*ENCODED, "adalora")
ADDED = "added_tokens=['[SQL]', '[/SQL]']"


def begun(folder: Path, base: Path, start: Path, *options: str) -> Any:
    """A model that begins with ``start``, before its first step."""
    config = make_config(folder, base, *options)
    loaded = load_base(config)
    torch.manual_seed(1)
    model = apply_method(loaded, config.method, 8)
    begin_with(read_start(start), model, loaded, msgspec.to_builtins(config.method))
    return model.eval()


def error_of(folder: Path, base: Path, start: Path, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        begun(folder, base, start, *options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_as_peft(model: Any, base: Path, package: Path) -> None:
    """``model`` gives the logits that peft alone gives with ``package``."""
    ids = list(range(1, 20))
    got = model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(got, oracle.logits(base, package, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_the_one_that_was_trained(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult], method: str
) -> None:
    first = trained(method)
    assert first.package is not None
    starts = [first.output / "checkpoint-40"]
    if method not in FROM_CHECKPOINTS_ONLY:
        starts.append(first.package)
    probes = read_golden(first.package)
    for start in starts:
        model = begun(tmp_path / start.name, tiny_base, start, *METHODS[method])
        again = golden_logits(model, [probe.input_ids.tolist() for probe in probes])
        for probe, got in zip(probes, again, strict=True):
            torch.testing.assert_close(got.logits, probe.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ENCODED)
def test_a_package_without_its_encoder_is_refused(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult], method: str
) -> None:
    first = trained(method)
    assert first.package is not None
    assert "not the encoder" in error_of(tmp_path / "next", tiny_base, first.package, *METHODS[method])


def test_the_prefix_of_a_projection_goes_on_without_it(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult]
) -> None:
    first = trained("prefix")
    assert first.package is not None
    options = ["method=prefix", "tokens=4", "projection=false"]
    model = begun(tmp_path / "next", tiny_base, first.package, *options)
    (probe, *_) = read_golden(first.package)
    (got,) = golden_logits(model, [probe.input_ids.tolist()])
    torch.testing.assert_close(got.logits, probe.logits, rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_learning_and_says_from_what(tiny_base: Path, tmp_path: Path) -> None:
    first = train(make_config(tmp_path / "first", tiny_base, *METHODS["lora"], "max_steps=30", "scheduler=constant"))
    fresh = losses(first)
    options = [*METHODS["lora"], f"start_from={first.package}"]
    second = train(make_config(tmp_path / "second", tiny_base, *options))
    assert losses(second)[1] < 0.7 * fresh[1]
    record = json.loads((second.output / "run.json").read_text(encoding="utf-8"))
    assert record["start_from"] == {"path": str(first.package), "sha256": read_start(first.package or Path()).sha256}
    assert record["data"]["train_rows"] == 40
    whole = losses(second)
    shutil.rmtree(second.output / "checkpoint-8")
    config = make_config(tmp_path / "second", tiny_base, *options)
    assert losses(train(config, resume=True)) == whole
    other = train(make_config(tmp_path / "other", tiny_base, *METHODS["lora"]))
    changed = make_config(tmp_path / "second", tiny_base, *METHODS["lora"], f"start_from={other.package}")
    with pytest.raises(CheckpointError, match=r"start_from was '\w+' and is now '\w+'"):
        train(changed, resume=True)


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_added_tokens_keep_their_rows(tmp_path: Path, base: str) -> None:
    tiny = make_base(tmp_path / "base", vocab_size=259, tie_word_embeddings=base == "tied")
    for method in ("lora", "prefix-plain", "bottleneck"):
        options = [*METHODS[method], ADDED]
        first = train(make_config(tmp_path / method, tiny, *options))
        assert first.package is not None
        model = begun(tmp_path / f"{method}-next", tiny, first.package, *options)
        (probe, *_) = read_golden(first.package)
        (got,) = golden_logits(model, [probe.input_ids.tolist()])
        torch.testing.assert_close(got.logits, probe.logits, rtol=1e-5, atol=1e-5)
        fewer = [*METHODS[method], "added_tokens=['[SQL]']"]
        assert "trainable_tokens_delta has shape [2, 64]" in error_of(tmp_path / "f", tiny, first.package, *fewer)


@pytest.mark.parametrize(("kind", "first_loss"), [("dpo", math.log(2)), ("kto", 0.5)])
@pytest.mark.parametrize("method", ["lora", "prefix", "prefix-plain", "bottleneck"])
def test_preferences_are_compared_with_what_the_run_starts_from(
    tiny_base: Path,
    tmp_path: Path,
    trained: Callable[[str], RunResult],
    *,
    method: str,
    kind: str,
    first_loss: float,
) -> None:
    rows = pair_rows() if kind == "dpo" else judged_rows()
    start = f"start_from={trained(method).output / 'checkpoint-40'}"
    second = train(preference_config(tmp_path / "next", tiny_base, kind, *METHODS[method], start, rows=rows))
    assert losses(second)[1] == pytest.approx(first_loss, abs=1e-5)
    assert second.metrics["reward_accuracy"] > 0.5


def test_preferences_know_tokens_that_the_start_has(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", vocab_size=259)
    first = train(make_config(tmp_path / "first", base, *METHODS["lora"], ADDED))
    rows = [{**row, "chosen": f"[SQL]{row['chosen']}[/SQL]"} for row in pair_rows()]
    options = [*METHODS["lora"], ADDED, f"start_from={first.package}"]
    second = train(preference_config(tmp_path / "next", base, "dpo", *options, rows=rows))
    assert losses(second)[1] == pytest.approx(math.log(2), abs=1e-5)


def test_what_peft_saved_elsewhere_is_a_start(tiny_base: Path, tmp_path: Path) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    targets = ["q_proj", "down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    model: Any = get_peft_model(plain, config)
    model.save_pretrained(tmp_path / "saved")
    options = ["method=lora", "r=4", "alpha=8", "target_modules=[down_proj, q_proj]"]
    ours = begun(tmp_path / "next", tiny_base, tmp_path / "saved", *options)
    assert_as_peft(ours, tiny_base, tmp_path / "saved")


def test_what_does_not_fit_is_named(tiny_base: Path, tmp_path: Path) -> None:
    first = train(make_config(tmp_path / "first", tiny_base, "r=4", "max_steps=2"))
    package, checkpoint = first.package, first.output / "checkpoint-2"
    assert package is not None

    def error(start: Path, *options: str, base: Path = tiny_base) -> str:
        return error_of(tmp_path / "next", base, start, *options)

    assert "r is '4' there and '8' here" in error(package, "r=8")
    assert "lora_alpha is '16.0' there and '32.0' here" in error(package, "r=4", "alpha=32")
    assert "method.alpha is '16.0' there and '32.0' here" in error(checkpoint, "r=4", "alpha=32")
    assert "peft_type is 'LORA' there and 'IA3' here" in error(package, "method=ia3")
    assert "method.type is 'lora' there and 'ia3' here" in error(checkpoint, "method=ia3")
    assert "which this method does not train" in error(package, "r=4", "target_modules=[q_proj]")
    assert "which the package does not have" in error(package, "r=4", "method.target_modules=all-linear", ADDED)
    assert "another base" in error(package, "r=4", base=make_base(tmp_path / "other", seed=5))
    assert "it holds adapter and checkpoint-2: name one of them" in error(first.output, "r=4")
    assert "there is no directory" in error(tmp_path / "nowhere", "r=4")
    (checkpoint / "run.json").unlink()
    assert "not a checkpoint" in error(checkpoint, "r=4")


def test_nothing_is_lost_when_the_start_is_wrong(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    first = train(make_config(tmp_path / "first", tiny_base, "r=4", "max_steps=2"))
    assert first.package is not None
    monkeypatch.chdir(tmp_path)
    for output, start in (
        (first.output, first.package),
        ("first/run", first.output / "checkpoint-2"),
        (first.output, "first/run"),
        (first.package, first.package),
        (first.package / "deeper", first.package),
    ):
        with pytest.raises(ConfigError, match="start_from: it and output lie in each other"):
            make_config(tmp_path / "next", tiny_base, "r=4", f"output={output}", f"start_from={start}")
    config = make_config(tmp_path / "first", tiny_base, "r=4", "max_steps=2", "start_from=nowhere")
    with pytest.raises(ConfigError, match="there is no directory"):
        train(config, overwrite=True)
    assert (first.output / "checkpoint-2" / "trainer_state.json").is_file()
    assert (first.output / "metrics.jsonl").is_file()


def test_adalora_goes_on_from_a_checkpoint_only(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult]
) -> None:
    first = trained("adalora")
    assert first.package is not None
    message = error_of(tmp_path / "next", tiny_base, first.package, *METHODS["adalora"])
    assert "holds the ranks that were kept" in message
    assert len(message) < 300


def test_what_peft_was_told_at_its_own_beginning_does_not_matter(tiny_base: Path, tmp_path: Path) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = VeraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj"], projection_prng_key=7)
    get_peft_model(plain, config).save_pretrained(tmp_path / "saved")
    options = ["method=vera", "r=8", "target_modules=[q_proj]"]
    model = begun(tmp_path / "next", tiny_base, tmp_path / "saved", *options)
    assert_as_peft(model, tiny_base, tmp_path / "saved")


def test_values_are_rounded_to_the_type_that_is_trained(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult]
) -> None:
    first = trained("ln_tuning")
    assert first.package is not None
    begun(tmp_path / "next", tiny_base, first.package, *METHODS["ln_tuning"], "dtype=bfloat16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=full"], "full fine-tuning starts from a base"),
        (["preference=reward"], "a reward model begins with the base"),
        (["preference=grpo", "reward=m:f", "preference.beta=0.1"], "hold the model to the base, not to start_from"),
        (["preference=grpo", "reward=m:f", ADDED], "does not know them; leave them out"),
        (["preference=dpo", ADDED], None),
    ],
)
def test_what_goes_with_a_start(tiny_base: Path, tmp_path: Path, options: list[str], message: str | None) -> None:
    options = [*options, "start_from=somewhere"]
    if message is None:
        assert make_config(tmp_path, tiny_base, *options).start_from == str(Path.cwd() / "somewhere")
        return
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, tiny_base, *options)
