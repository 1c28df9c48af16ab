"""Full fine-tuning: a new base that answers as the trained model did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.package.manifest import read_manifest
from bases.fingerprint import base_fingerprint
from tests.factory import make_base
from tests.server.live import live_server
from tests.trainer.support import WORDS, colour_rows, losses, make_config
from trainer.commands.train import train as command
from trainer.data.rendering import TEMPLATES
from trainer.errors import CheckpointError, ConfigError
from trainer.run import train

OPTIONS = ["method=full", "learning_rate=3e-3"]


def test_the_new_base_is_served_and_answers_as_it_was_trained(tiny_base: Path, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, tiny_base, *OPTIONS, "max_steps=80", "exact_match_rows=8"))
    assert result.package is None
    assert result.base == tmp_path / "run" / "base"
    assert result.metrics["exact_match"] == 1
    assert sorted(path.name for path in result.base.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "hotswap.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {path.stat().st_mode & 0o777 for path in result.base.iterdir()} == {0o644}
    checkpoint = load_file(tmp_path / "run" / "checkpoint-80" / "trainable.safetensors")
    weights = load_file(result.base / "model.safetensors")
    assert all(torch.equal(weights[name.removeprefix("base_model.")], value) for name, value in checkpoint.items())
    manifest = read_manifest(result.base)
    assert manifest is not None
    assert (manifest.kind, manifest.base.fingerprint) == ("full", base_fingerprint(tiny_base))
    assert base_fingerprint(result.base) != base_fingerprint(tiny_base)
    with live_server(result.base, tmp_path / "data") as live:
        for row in colour_rows()[:6]:
            messages = [{"role": "user", "content": row["prompt"]}]
            body = {"model": "base", "messages": messages, "max_tokens": 8, "temperature": 0}
            response = live.post("/v1/chat/completions", body)
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["message"]["content"] == row["response"]
        live.wait_idle()


def test_it_is_saved_in_the_type_of_the_base(tiny_base: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    half = tmp_path / "half"
    shutil.copytree(tiny_base, half)
    model.save_pretrained(half)
    result = train(make_config(tmp_path, half, *OPTIONS))
    assert result.base is not None
    assert json.loads((result.base / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((result.base / "config.json").read_text())["use_cache"] is True
    saved = load_file(result.base / "model.safetensors")
    trained = load_file(result.output / "checkpoint-8" / "trainable.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}  # a step of Adam is lost in bfloat16
    assert saved.keys() == load_file(half / "model.safetensors").keys()
    assert all(torch.equal(saved[name.removeprefix("base_model.")], t.bfloat16()) for name, t in trained.items())


def test_bfloat16_is_mixed_precision_over_float32_weights(tiny_base: Path, tmp_path: Path) -> None:
    for method in ("full", "freeze"):
        options = [f"method={method}", "learning_rate=1e-3", "max_steps=6"] + ["layers=1"] * (method == "freeze")
        plain = train(make_config(tmp_path / method / "a", tiny_base, *options, "dtype=float32"))
        mixed = train(make_config(tmp_path / method / "b", tiny_base, *options, "dtype=bfloat16"))
        assert losses(mixed) != losses(plain)
        assert losses(mixed) == pytest.approx(losses(plain), rel=0.02)
        saved = load_file(mixed.output / "checkpoint-4" / "trainable.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("options", [[], ["added_tokens=['[SQL]']"], ["gradient_checkpointing=true"]])
def test_a_resumed_run_is_equal_to_the_last_bit(tiny_base: Path, tmp_path: Path, options: list[str]) -> None:
    config = make_config(tmp_path, tiny_base, *OPTIONS, "gradient_accumulation=2", *options)
    whole = train(config)
    assert whole.base is not None
    expected, fingerprint = losses(whole), base_fingerprint(whole.base)
    weights = load_file(whole.base / "model.safetensors")
    shutil.rmtree(whole.output / "checkpoint-8")
    torch.manual_seed(5)
    resumed = train(config, resume=True)
    assert losses(resumed) == expected
    assert resumed.base is not None
    assert base_fingerprint(resumed.base) == fingerprint
    again = load_file(resumed.base / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_checkpointing_changes_no_loss(tiny_base: Path, tmp_path: Path) -> None:
    plain = train(make_config(tmp_path / "a", tiny_base, *OPTIONS))
    saving = train(make_config(tmp_path / "b", tiny_base, *OPTIONS, "gradient_checkpointing=true"))
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_become_part_of_the_new_base(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "small", vocab_size=259, tie_word_embeddings=tied)
    rows = [{"prompt": word, "response": f"[SQL]{word[0]}"} for word in WORDS * 8]
    options = [*OPTIONS, "added_tokens=['[SQL]']", "max_steps=80", "exact_match_rows=8"]
    result = train(make_config(tmp_path, base, *options, rows=rows))
    assert result.base is not None
    assert result.metrics["exact_match"] == 1
    assert json.loads((result.base / "config.json").read_text())["vocab_size"] == 260
    assert AutoTokenizer.from_pretrained(result.base)("[SQL]", add_special_tokens=False).input_ids == [259]
    with live_server(result.base, tmp_path / "data") as live:
        body = {"model": "base", "messages": [{"role": "user", "content": "red"}], "max_tokens": 8, "temperature": 0}
        answer = live.post("/v1/chat/completions", body).json()
        assert answer["choices"][0]["message"]["content"] == "[SQL]r"
        assert answer["usage"]["completion_tokens"] == 3
        live.wait_idle()


def test_the_new_base_has_the_template_that_it_was_trained_with(tiny_base: Path, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, tiny_base, *OPTIONS, "template=alpaca", "max_steps=2"))
    assert result.base is not None
    assert AutoTokenizer.from_pretrained(result.base).chat_template == TEMPLATES["alpaca"]
    assert not (result.output / "chat_template.jinja").exists()


def test_quantized_weights_are_not_trained(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.quantize: full works on the base's weights"):
        make_config(tmp_path, tiny_base, *OPTIONS, "quantize=nf4")


def test_what_cannot_be_written_is_one_line_and_leaves_the_older_base(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, tiny_base, *OPTIONS, "max_steps=2")
    first = train(config)
    assert first.base is not None
    before = base_fingerprint(first.base)
    monkeypatch.setattr("trainer.files.sync", _no_space)
    with pytest.raises(CheckpointError, match="base cannot be written: the disk is full"):
        train(config, overwrite=True)
    assert base_fingerprint(first.base) == before
    assert not list(first.output.glob(".base*"))


def _no_space(_path: Path) -> None:
    raise OSError(28, "No space left on device")


def test_the_command_says_where_the_base_lies(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config(tmp_path, tiny_base)
    assert command([str(tmp_path / "config-in.yaml"), *OPTIONS, "max_steps=2", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"base: {tmp_path}/run/base"
