"""GGUF files become bases that compute what the original does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bases import cache as gguf_import
from bases.errors import BaseModelError
from bases.finding import gguf_base_dir, keeps_gguf, resolve_base
from bases.gguf import _llama3_factors, convert_gguf, open_gguf
from bases.gguf_blocks import StoredBlocks, find_blocks
from hotswap.base_cli import main as base_main
from tests import oracle
from tests.adapters.support import load_model
from tests.bases.gguf_files import rounded, write_gguf
from tests.factory import make_base
from tests.server.model.support import make_runner

IDS = [72, 101, 108, 108, 111, 7, 9]


@pytest.fixture(scope="module")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama without biases, which its GGUF form has no place for; dimensions fit blocks of 32."""
    return make_base(tmp_path_factory.mktemp("base") / "plain", rms_norm_eps=1e-5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rounded_logits(base: Path, kind: Type, dtype: torch.dtype) -> Tensor:
    """Logits of ``base`` with its matrices as ``kind`` keeps them, converted to ``dtype``."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.from_numpy(rounded(parameter.numpy(), kind)))
            parameter.copy_(parameter.to(dtype))
        logits: Tensor = model(torch.tensor([IDS])).logits[0]
    return logits


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (Type.F32, torch.float32),
        (Type.F16, torch.float16),
        (Type.BF16, torch.bfloat16),
        (Type.Q8_0, torch.bfloat16),
        (Type.Q4_0, torch.bfloat16),
        (Type.Q5_1, torch.bfloat16),
    ],
)
def test_logits_are_those_of_the_original_rounded_alike(
    plain_base: Path, tmp_path: Path, kind: Type, dtype: torch.dtype
) -> None:
    out = tmp_path / "out"
    convert_gguf(write_gguf(plain_base, tmp_path / "tiny.gguf", kind=kind), out)
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    got = oracle.logits(out, None, IDS)
    torch.testing.assert_close(got, rounded_logits(plain_base, kind, dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q8_0])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_weights_are_kept_as_they_were_stored(tmp_path: Path, kind: Type, architecture: str) -> None:
    """To the last bit, under transformers' names, and in its order of a llama's query and key rows."""
    own: dict[str, Any] = {"head_dim": 16, "rms_norm_eps": 1e-6} if architecture == "qwen2" else {"rms_norm_eps": 1e-5}
    base = make_base(tmp_path / "base", model_type=architecture, tie_word_embeddings=architecture == "llama", **own)
    said = convert_gguf(write_gguf(base, tmp_path / "a.gguf", kind=kind, architecture=architecture), tmp_path / "out")
    stored = StoredBlocks(tmp_path / "out")
    matrices = {n: p.numpy() for n, p in load_model(base).state_dict().items() if p.dim() == 2}
    if architecture == "llama":
        del matrices["lm_head.weight"]
    assert set(stored) == set(matrices)
    assert said == f"{len(stored)} of {len(stored)} weight matrices are kept as stored ({kind.name})"
    for name, weight in matrices.items():
        assert np.array_equal(stored[name].dense().numpy(), rounded(weight, kind)), name
    runner = make_runner(tmp_path / "out", "auto")
    assert runner.quantization == "gguf"


@pytest.mark.parametrize("kind", [Type.Q5_1, Type.BF16, Type.F16])
def test_other_kinds_are_not(plain_base: Path, tmp_path: Path, kind: Type) -> None:
    said = convert_gguf(write_gguf(plain_base, tmp_path / "a.gguf", kind=kind), tmp_path / "out")
    became = "float16" if kind == Type.F16 else "bfloat16"
    assert said.startswith(f"weights of {kind.name} became {became}")
    assert ("Q4_0, Q4_1 and Q8_0 are kept" in said) == (kind != Type.F16)
    assert not keeps_gguf(tmp_path / "out")


def test_a_weight_that_is_not_the_tensors_is_not_found(plain_base: Path, tmp_path: Path) -> None:
    """One number of one row is another: the whole weight stays what transformers made of it."""
    reader = open_gguf(write_gguf(plain_base, tmp_path / "a.gguf", kind=Type.Q4_1))
    convert_gguf(tmp_path / "a.gguf", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    model.model.layers[0].self_attn.q_proj.weight.data[3, 5] += 1
    assert set(StoredBlocks(tmp_path / "out")) - set(find_blocks(reader.tensors, model)) == {
        "model.layers.0.self_attn.q_proj.weight"
    }


@pytest.mark.parametrize("tied", [True, False])
def test_config_and_tokenizer_are_the_originals(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", rms_norm_eps=1e-5, tie_word_embeddings=tied)
    out = tmp_path / "out"
    convert_gguf(write_gguf(base, tmp_path / "tiny.gguf"), out)
    got, want = (json.loads((path / "config.json").read_text()) for path in (out, base))
    assert {key: got[key] for key in want} == want
    mine, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    text = "Grüße, world<|im_end|>\n"
    assert mine(text)["input_ids"] == theirs(text)["input_ids"]
    assert (mine.chat_template, mine.eos_token_id) == (theirs.chat_template, theirs.eos_token_id)
    torch.testing.assert_close(oracle.logits(out, None, IDS), oracle.logits(base, None, IDS), rtol=0, atol=1e-5)


def test_another_architecture(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", model_type="qwen2", head_dim=16, rms_norm_eps=1e-6)
    out = tmp_path / "out"
    convert_gguf(write_gguf(base, tmp_path / "tiny.gguf", architecture="qwen2"), out)
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen2"
    torch.testing.assert_close(oracle.logits(out, None, IDS), oracle.logits(base, None, IDS), rtol=0, atol=1e-5)


def test_llama3_position_scaling_is_restored_from_its_factors(tmp_path: Path) -> None:
    rope: dict[str, Any] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    base = make_base(tmp_path / "base", rope_parameters=rope, rms_norm_eps=1e-5)
    factors = _llama3_factors(8, 500000.0, 8.0).astype(np.float32)
    out = tmp_path / "out"
    convert_gguf(write_gguf(base, tmp_path / "tiny.gguf", extra={"rope_freqs.weight": factors}), out)
    assert json.loads((out / "config.json").read_text())["rope_parameters"] == rope
    torch.testing.assert_close(oracle.logits(out, None, IDS), oracle.logits(base, None, IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metadata": {"general.architecture": "rwkv7"}}, "rwkv7 model that cannot be imported: GGUF model with arch"),
        ({"metadata": {"split.count": 3}}, "one of 3 parts; join them first: llama-gguf-split --merge"),
        ({"leave_out": "blk.1.ffn_up.weight"}, "it lacks model.layers.1.mlp.up_proj.weight"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "of which transformers' llama would use"),
        ({"extra": {"rope_freqs.weight": np.array([1, 2, 3, 4, 5, 6, 7, 9], np.float32)}}, "not those of Llama 3"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "scales positions by yarn"),
    ],
)
def test_what_would_be_wrong_is_refused(plain_base: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = write_gguf(plain_base, tmp_path / "tiny.gguf", **options)
    with pytest.raises(BaseModelError, match=words):
        convert_gguf(path, tmp_path / "out")


@pytest.mark.parametrize("left", [0.99, 0.5, 0.02, 0.0001])
def test_a_file_cut_short_is_refused(plain_base: Path, tmp_path: Path, left: float) -> None:
    path = write_gguf(plain_base, tmp_path / "tiny.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(BaseModelError, match="cut short; download it again"):
        convert_gguf(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not a GGUF file"), (b"PK\x03\x04" + bytes(64), "not a GGUF file"), (None, "cannot be read: No such file")],
)
def test_what_is_no_gguf_file_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BaseModelError, match=words):
        convert_gguf(path, tmp_path / "out")


def test_it_is_imported_once_and_served_quantized(
    plain_base: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, found again under any name, and a base like any other from then on."""
    path = write_gguf(plain_base, tmp_path / "tiny.Q8_0.gguf", kind=Type.Q8_0)
    with pytest.raises(BaseModelError, match=f"run: hotswap base import {path}"):
        resolve_base(str(path))
    assert base_main(["import", str(path)]) == 0
    directory = Path(capsys.readouterr().out.strip())
    assert directory.parent == cache / "bases"
    assert directory.name.startswith("tiny.Q8_0-")
    assert resolve_base(str(path)) == directory
    monkeypatch.setattr(gguf_import, "_build", None)  # not called again
    assert gguf_import.import_gguf(path) == directory
    runner = make_runner(directory, "nf4")
    assert runner.quantization == "nf4"
    assert runner.vocab_size == 320


def test_a_refused_file_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BaseModelError, match="damaged or cut short"):
        gguf_import.import_gguf(path)
    assert all(entry.name.startswith(".") and entry.is_file() for entry in (cache / "bases").iterdir())


def test_the_cache_knows_files_by_content(tmp_path: Path, cache: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    first.write_bytes(bytes(9_000_000))
    second.write_bytes(bytes(8_999_999) + b"1")
    assert gguf_base_dir(first).name.removeprefix("a-") != gguf_base_dir(second).name.removeprefix("b-")
    second.write_bytes(bytes(9_000_000))
    assert gguf_base_dir(first).name.removeprefix("a-") == gguf_base_dir(second).name.removeprefix("b-")
