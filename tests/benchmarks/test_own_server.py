"""The measurements of hotswap itself, on a tiny base: the numbers are those of an independent calculation."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import adapter_loading, adapter_memory, perplexity
from tests import oracle

TEXT = "It was the best of times, it was the worst of times. " * 8


def test_perplexity_is_that_of_transformers(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(TEXT)
    arguments = ["--text", str(tmp_path / "text"), "--model", str(tiny_base), "--dtype", "float32"]
    arguments += ["--kv-dtype", "float32"]
    assert perplexity.main([*arguments, "--quantize", "nf4", "--tokens", "150", "--window", "64"]) == 0
    ids = AutoTokenizer.from_pretrained(tiny_base)(TEXT)["input_ids"][:150]
    losses = []
    for window in (ids[:64], ids[64:128], ids[128:150]):
        logits = oracle.logits(tiny_base, None, window, "nf4")
        losses += torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="none").tolist()
    out = capsys.readouterr().out
    row = re.search(r"\| nf4 \| (\S+) \| (\S+) \| (\S+) \| \+0.00% \| \d+ \| \d+ \|", out)
    assert row is not None
    assert float(row[3]) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert "147 tokens scored" in out


def test_no_text_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert perplexity.main(["--text", str(tmp_path / "absent")]) == 1
    assert "skipped, there is no text" in capsys.readouterr().err


def test_rows_of_jsonl_are_joined(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"q": "a", "a": 1}\n\n{"q": "b", "a": 2}\n')
    assert perplexity.read_text(tmp_path / "rows", "q,a") == "a\n1\n\nb\n2"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of processes")
def test_the_server_reports_what_adapters_weigh(tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapter_memory.main(["--base", str(tiny_base), "--counts", "1,3", "--ranks", "4,64"]) == 0
    out = capsys.readouterr().out
    # 2 layers; q_proj 64 to 64 and v_proj 64 to 32; fp32
    weights = [2 * rank * (64 + 64 + 64 + 32) * 4 / 1e6 for rank in (4, 64, 4)]
    for count, nbytes in ((1, weights[0]), (3, sum(weights))):
        assert f"| {count} | {nbytes:,.1f} | {nbytes:,.1f} |" in out


@pytest.mark.slow
def test_streams_are_measured_with_and_without_adapters_that_load(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--base", str(tiny_base), "--streams", "1", "--seconds", "1", "--rounds", "1", "--out", str(tmp_path)]
    assert adapter_loading.main(argv) == 0
    out = capsys.readouterr().out
    loaded = re.search(r"\| adapters loaded \| \| (\d+) \|", out)
    assert loaded is not None
    assert int(loaded[1]) >= 1
    for name in ("inter-token p50 ms", "inter-token p99 ms", "tokens/s"):
        assert re.search(rf"\| {name} \| \d+\.\d \| \d+\.\d \| \d+\.\d\d \|", out)
