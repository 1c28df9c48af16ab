"""Adapters in the weights of their base: the new base answers as the adapter did, or the merge is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.errors import BaseMismatchError, PackageError
from adapters.package.golden import read_golden
from adapters.package.manifest import read_manifest
from tests import oracle
from tests.factory import make_base
from tests.trainer.every_method import METHODS
from tests.trainer.support import WORDS, make_config
from trainer.commands.merge import merge as command
from trainer.errors import CheckpointError, ConfigError
from trainer.export.merge import TOLERANCE, merge
from trainer.loop.session import RunResult
from trainer.run import train

REFUSED = {"bottleneck", "pfeiffer", "prefix", "prefix-plain", "prompt", "p_tuning", "p_tuning-lstm"}
MERGED = [name for name, options in METHODS.items() if name not in REFUSED and options[0] != "method=full"]


def train_with(base: Path, folder: Path, method: str, *options: str, rows: list[Any] | None = None) -> Path:
    result = train(make_config(folder, base, *METHODS[method], "max_steps=10", *options, rows=rows))
    return package_of(result)


def package_of(result: RunResult) -> Path:
    assert result.package is not None
    return result.package


@torch.no_grad()
def check(package: Path, new: Path) -> None:
    """The recorded logits of ``package`` come out of the base ``new`` alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32, attn_implementation="eager")
    for probe in read_golden(package):
        got = model.eval()(input_ids=probe.input_ids[None]).logits[0, -1]
        assert float((got - probe.logits).abs().max() / probe.logits.std()) < TOLERANCE


@pytest.mark.parametrize("method", MERGED)
def test_the_merged_base_answers_as_the_adapter(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult], method: str
) -> None:
    package = package_of(trained(method))
    merged = merge(package, tmp_path / "new", str(tiny_base))
    assert merged.exact < TOLERANCE
    check(package, merged.path)
    before, after = load_file(tiny_base / "model.safetensors"), load_file(merged.path / "model.safetensors")
    untied = {"lm_head.weight"} if method == "lora-saved" else set()  # it is no longer the embedding
    assert after.keys() == before.keys() | untied
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_what_is_no_change_of_weights_is_refused_with_the_reason(
    tiny_base: Path, tmp_path: Path, trained: Callable[[str], RunResult], method: str
) -> None:
    package = package_of(trained(method))
    with pytest.raises(ConfigError, match=r"cannot be merged: it(s networks are not linear| stands before the prompt)"):
        merge(package, tmp_path / "new", str(tiny_base))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name",
    [
        "adalora-kept",
        "dora-rslora-patterns",
        "freeze-embedding",
        "hira",
        "lora-bias-all",
        "lora-embedding-and-head-saved",
        "lora-layer-saved",
        "lora-tokens",
        "oft-8",
        "road-2",
        "shira",
        "trainable-tokens",
        "vblora",
    ],
)
def test_adapters_that_peft_saved_are_merged(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, name: str
) -> None:
    new = merge(tiny_adapters[name], tmp_path / "new", str(tiny_base)).path
    assert distance(tiny_base, tiny_adapters[name], new) < TOLERANCE


@pytest.mark.parametrize("name", ["lora-tokens-apart", "lora-head", "lora-tied", "oft-embedding", "tinylora-embedding"])
def test_what_one_weight_for_embedding_and_head_cannot_hold_is_refused(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="cannot be merged"):
        merge(tiny_adapters[name], tmp_path / "new", str(tiny_base))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_every_kind_that_is_served_is_merged_or_refused(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    merged = 0
    for name in tiny_adapters:
        try:
            new = merge(tiny_adapters[name], tmp_path / name, str(tiny_base)).path
        except ConfigError:
            assert not (tmp_path / name).exists()
            continue
        assert distance(tiny_base, tiny_adapters[name], new) < TOLERANCE, name
        merged += 1
        shutil.rmtree(new)
    assert merged > 90


@torch.no_grad()
def distance(base: Path, package: Path, new: Path) -> float:
    """The largest difference of logits between the adapter by its oracle and the base ``new``, of their spread."""
    ids = list(range(10, 20))
    expected = oracle.logits(base, package, ids)
    model: Any = AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32, attn_implementation="eager")
    got = model(input_ids=torch.tensor([ids])).logits[0]
    return float((got - expected).abs().max() / expected.std())


@pytest.mark.parametrize("method", ["lora", "ia3", "freeze"])
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_merged(tmp_path: Path, method: str, tied: bool) -> None:
    base = make_base(tmp_path / "small", vocab_size=259, tie_word_embeddings=tied)
    rows = [{"prompt": word, "response": f"[SQL]{word[0]}"} for word in WORDS * 8]
    package = train_with(base, tmp_path, method, "added_tokens=['[SQL]', '<|im_end|>']", rows=rows)
    merged = merge(package, tmp_path / "new", str(base))
    check(package, merged.path)
    assert AutoTokenizer.from_pretrained(merged.path)("[SQL]", add_special_tokens=False).input_ids == [259]


def test_an_adapter_trained_on_a_quantized_base_merges_into_the_full_one(tiny_base: Path, tmp_path: Path) -> None:
    package = train_with(tiny_base, tmp_path, "lora", "quantize=nf4")
    merged = merge(package, tmp_path / "new", str(tiny_base), dtype="bfloat16")
    assert merged.exact < TOLERANCE < merged.saved < 0.1  # bfloat16 rounds
    assert {tensor.dtype for tensor in load_file(merged.path / "model.safetensors").values()} == {torch.bfloat16}
    manifest = read_manifest(merged.path)
    assert manifest is not None
    assert (manifest.kind, manifest.training["adapter"], manifest.training["quantize"]) == ("merged", "lora", "nf4")


def test_what_is_wrong_is_one_line(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained: Callable[[str], RunResult],
) -> None:
    package = package_of(trained("lora"))
    other = make_base(tmp_path / "other", seed=9)
    (tmp_path / "there").mkdir()
    with pytest.raises(BaseMismatchError, match="is another base"):
        merge(package, tmp_path / "new", str(other))
    with pytest.raises(CheckpointError, match="exists already"):
        merge(package, tmp_path / "there", str(tiny_base))
    with pytest.raises(PackageError, match=r"there is no adapter_config\.json"):
        merge(tmp_path / "there", tmp_path / "new", str(tiny_base))
    plain = tmp_path / "plain"
    shutil.copytree(package, plain)
    (plain / "hotswap.json").unlink()
    with pytest.raises(ConfigError, match="give it with --base"):
        merge(plain, tmp_path / "new")
    assert command([str(package), str(tmp_path / "new"), "--base", str(other)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hotswap: the adapter was trained on tiny")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_command_says_how_close_it_is(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Callable[[str], RunResult]
) -> None:
    package = package_of(trained("lora"))
    assert command([str(package), str(tmp_path / "new"), "--base", str(tiny_base)]) == 0
    assert command([str(package), str(tmp_path / "new"), "--base", str(tiny_base), "--overwrite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("merged; logits differ from the adapter's by ")
    assert lines[-1] == f"base: {tmp_path}/new"
