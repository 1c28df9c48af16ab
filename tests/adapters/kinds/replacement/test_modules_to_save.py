"""Modules saved whole, trained tokens and resized vocabularies, on bases of several families, against PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TrainableTokensConfig

from adapters.compiling import compile_package
from adapters.ops import Adapter
from adapters.ops.embedding import EmbedRows, HeadRows
from adapters.ops.replace import ReplaceLinear, ReplaceParameters
from adapters.package.reading import read_package
from tests import resized
from tests.adapters.support import op_logits, spec_of
from tests.bounds import LOGITS
from tests.factory import make_base

VOCAB = 320
TOLERANCE = LOGITS
INPUT_IDS = [5, 9, 250, 17, 33, 64, 64]
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "num_key_value_heads": 4}
BASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "untied": {"model_type": "llama", "tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gemma": {"model_type": "gemma"},
    "opt": {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64, "num_key_value_heads": 4},
    "phi": {"model_type": "phi", "tie_word_embeddings": False},
}
TARGET = {"gpt2": "c_attn"}
EMBEDDING = {"gpt2": "wte"}


@pytest.fixture(scope="module", params=list(BASES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, **BASES[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "llama", **BASES["llama"])


def lora(base: Path, **options: Any) -> LoraConfig:
    target = TARGET.get(base.name, "q_proj")
    given = {"r": 4, "target_modules": [target], "fan_in_fan_out": base.name == "gpt2", **options}
    return LoraConfig(task_type="CAUSAL_LM", **given)


def save(base: Path, path: Path, config: Any, vocab_size: int = VOCAB, **options: Any) -> Path:
    return resized.save(base, path, config, vocab_size, **options)


def check(base: Path, path: Path, vocab_size: int = VOCAB, ids: list[int] = INPUT_IDS) -> Adapter:
    """Compare with peft on the resized base; returns the compiled adapter."""
    adapter = compile_package(read_package(path), spec_of(base))
    want = resized.logits(base, path, vocab_size, ids)
    got = op_logits(base, adapter, torch.tensor(ids))
    width = adapter.num_logits or VOCAB
    torch.testing.assert_close(got[:, :width], want[:, :width], rtol=0, atol=TOLERANCE)
    return adapter


OPTIONS: dict[str, dict[str, Any]] = {
    "tokens": {"trainable_token_indices": [64, 9, 300]},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["EMBEDDING"]},
    "both": {"modules_to_save": ["EMBEDDING", "lm_head"]},
    "linear": {"modules_to_save": ["fc2", "down_proj", "attn.c_proj"]},
    "norms": {"modules_to_save": ["norm", "ln_1"]},
    "biases too": {"modules_to_save": ["norm", "ln_1"], "bias": "all"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_on_every_base(base: Path, name: str, tmp_path: Path) -> None:
    spec = spec_of(base)
    options = dict(OPTIONS[name])
    if "modules_to_save" in options:
        listed = [
            EMBEDDING.get(base.name, "embed_tokens") if m == "EMBEDDING" else m for m in options["modules_to_save"]
        ]
        known = {path.rpartition(".")[0] for path in spec.parameters}
        options["modules_to_save"] = [m for m in listed if any(k.endswith(m) for k in known)]
    check(base, save(base, tmp_path / "p", lora(base, **options)))


@pytest.mark.parametrize("options", [{}, {"target_modules": ["lm_head"]}, {"target_modules": ["EMBEDDING"]}])
def test_the_kind_on_every_base(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    if "target_modules" in options:
        if base.name == "phi":
            pytest.skip("its head has a bias")
        options = {"target_modules": [m.replace("EMBEDDING", EMBEDDING.get(base.name, "embed_tokens"))
                                      for m in options["target_modules"]]}  # fmt: skip
    check(base, save(base, tmp_path / "p", TrainableTokensConfig(token_indices=[64, 9], **options)))


def test_tied_heads_follow_the_embedding_only_where_peft_says_so(llama: Path, tmp_path: Path) -> None:
    def sides(name: str, **options: Any) -> set[str]:
        adapter = check(llama, save(llama, tmp_path / name, lora(llama, **options)))
        return set(adapter.ops) & {"model.embed_tokens", "lm_head"}

    assert sides("a", modules_to_save=["lm_head"]) == {"lm_head"}
    assert sides("b", modules_to_save=["embed_tokens"]) == {"model.embed_tokens"}
    assert sides("c", modules_to_save=["embed_tokens"], ensure_weight_tying=True) == {"model.embed_tokens", "lm_head"}
    assert sides("d", trainable_token_indices=[5]) == {"model.embed_tokens", "lm_head"}
    assert sides("e", trainable_token_indices={"lm_head": [5]}) == {"lm_head"}


def test_shared_weights_are_kept_once(llama: Path, tmp_path: Path) -> None:
    config = lora(llama, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    adapter = check(llama, save(llama, tmp_path / "p", config))
    (embedding,), (head,) = adapter.ops["model.embed_tokens"], adapter.ops["lm_head"]
    assert isinstance(embedding, ReplaceParameters)
    assert isinstance(head, ReplaceLinear)
    assert embedding.parameters["weight"] is head.weight
    adapter = check(llama, save(llama, tmp_path / "q", lora(llama, trainable_token_indices=[5, 9])))
    (rows,), (columns,) = adapter.ops["model.embed_tokens"], adapter.ops["lm_head"]
    assert isinstance(rows, EmbedRows)
    assert isinstance(columns, HeadRows)
    assert rows.rows is columns.rows


def test_embedding_layers_saved_unchanged_weigh_nothing(base: Path, tmp_path: Path) -> None:
    path = save(base, tmp_path / "p", lora(base), save_embedding_layers=True)
    assert any(name.endswith("lm_head.weight") for name in read_package(path).tensors)
    adapter = check(base, path)
    assert not {spec_of(base).embedding, "lm_head"} & set(adapter.ops)
    assert (adapter.vocab_size, adapter.num_logits) == (None, None)


NEW = VOCAB + 3
RESIZED: dict[str, Mapping[str, Any]] = {
    "saved embedding layers": {},
    "new tokens": {"trainable_token_indices": [VOCAB, VOCAB + 1, VOCAB + 2]},
    "new and old tokens": {"trainable_token_indices": [VOCAB + 2, 64, VOCAB, VOCAB + 1]},
    "some of the new tokens": {"trainable_token_indices": [VOCAB + 1]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "whole both tied": {"modules_to_save": ["lm_head", "embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.filterwarnings("ignore:ensure_weight_tying:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.:UserWarning")
@pytest.mark.parametrize("name", RESIZED)
@pytest.mark.parametrize("base", ["llama", "untied", "gemma"], indirect=True)
def test_a_larger_vocabulary(base: Path, name: str, tmp_path: Path) -> None:
    path = save(base, tmp_path / "p", lora(base, **RESIZED[name]), NEW)
    adapter = check(base, path, NEW, [5, VOCAB, 9, VOCAB + 2, 17])
    assert (adapter.vocab_size, adapter.num_logits) == (NEW, NEW)
    if not RESIZED[name]:
        assert adapter.nbytes < 50_000  # the rows that are new, not the tables


def test_a_larger_vocabulary_of_a_prompt_adapter(llama: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adapter = compile_package(read_package(save(llama, tmp_path / "p", config, NEW)), spec_of(llama))
    assert (adapter.vocab_size, adapter.num_logits, adapter.num_virtual_tokens) == (NEW, NEW, 4)


def test_a_smaller_vocabulary(llama: Path, tmp_path: Path) -> None:
    adapter = check(llama, save(llama, tmp_path / "p", lora(llama), VOCAB - 8), VOCAB - 8)
    assert (adapter.vocab_size, adapter.num_logits) == (VOCAB - 8, VOCAB - 8)
    assert not {"model.embed_tokens", "lm_head"} & set(adapter.ops)


def test_new_tokens_that_can_be_read_but_not_written(tmp_path: Path) -> None:
    base = make_base(tmp_path / "untied", **BASES["untied"])
    config = TrainableTokensConfig(token_indices=[VOCAB, VOCAB + 1], task_type="CAUSAL_LM")
    adapter = check(base, save(base, tmp_path / "p", config, VOCAB + 2), VOCAB + 2, [5, VOCAB, 9])
    assert (adapter.vocab_size, adapter.num_logits) == (VOCAB + 2, None)


def test_rounding_at_save_is_no_change(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save(llama, tmp_path / "p", lora(llama), save_embedding_layers=True)
    file = path / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    assert not {"model.embed_tokens", "lm_head"} & set(compile_package(read_package(path), spec_of(llama)).ops)
