"""LoRA's variants and its places over bases that differ in how embedding and head are made, against peft."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.torch import load_file
from torch import Tensor, nn

from adapters.compiling import compile_package
from adapters.errors import UnsupportedKindError
from adapters.kinds.lora.modules import row_norms
from adapters.ops import LowRank
from adapters.package.reading import read_package
from tests import resized
from tests.adapters.kinds.against_peft import GPT2, INPUT_IDS, TOLERANCE, error
from tests.adapters.support import SMALL_SPEC, load_model, lora_tensors, op_logits, spec_of, write_raw
from tests.factory import make_adapter, make_base
from tests.kinds.lora import fill_lora

CLM = "CAUSAL_LM"
BASES: dict[str, dict[str, Any]] = {
    "tied": {"attention_bias": True, "mlp_bias": True},
    "untied": {"tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gemma3": {"model_type": "gemma3_text"},  # its embedding multiplies its rows
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "dora-bias-only": {"target_modules": "all-linear", "use_dora": True, "bias": "lora_only"},
    "embedding": {"target_modules": ["EMBEDDING", "QUERY"], "use_rslora": True},
    "embedding-dora": {"target_modules": ["EMBEDDING"], "use_dora": True},
    "head": {"target_modules": ["lm_head"]},
    "head-dora": {"target_modules": ["lm_head"], "use_dora": True},
    "both": {"target_modules": ["EMBEDDING", "lm_head"], "bias": "all"},
    "regex": {"target_modules": ".*EMBEDDING|lm_head|.*QUERY"},
    "mica": {"target_modules": ["EMBEDDING", "QUERY"], "init_lora_weights": "mica"},
    "eva": {"target_modules": ["QUERY"], "init_lora_weights": "orthogonal"},
    "velora": {"target_modules": ["QUERY"], "velora_config": VeloraConfig(num_groups=8)},
    "monteclora": {"target_modules": ["QUERY"], "monteclora_config": MontecloraConfig()},
    "qalora": {"target_modules": ["QUERY"], "use_qalora": True},  # peft ignores it on all but GPTQ bases
}


@pytest.fixture(scope="module", params=list(BASES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, **BASES[request.param])


def named(value: Any, base: Path) -> Any:
    """``value`` with the names that the base has for its embedding and its queries."""
    if isinstance(value, list):
        return [named(item, base) for item in value]
    if not isinstance(value, str):
        return value
    embedding, query = ("wte", "c_attn") if base.name == "gpt2" else ("embed_tokens", "q_proj")
    return value.replace("EMBEDDING", embedding).replace("QUERY", query)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_variant(base: Path, name: str, tmp_path: Path) -> None:
    options = {key: named(value, base) for key, value in OPTIONS[name].items()}
    config = LoraConfig(r=4, task_type=CLM, fan_in_fan_out=base.name == "gpt2", **options)
    assert error(base, make_adapter(base, tmp_path / "adapter", config, fill=fill_lora)) < TOLERANCE


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("targets", [["embed_tokens", "lm_head", "q_proj"], ".*embed_tokens|lm_head", ["lm_head"]])
def test_tied_adapters(targets: Any, use_dora: bool, tiny_base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=targets, ensure_weight_tying=True, use_dora=use_dora, task_type=CLM)
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config, fill=fill_lora)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")
def test_ensure_weight_tying_means_nothing_on_an_untied_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    config = LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True, task_type=CLM)
    assert error(base, make_adapter(base, tmp_path / "a", config, fill=fill_lora)) < TOLERANCE


def test_a_tied_head_is_served_as_it_was_trained_where_pefts_reload_drops_it(tmp_path: Path) -> None:
    """peft ties on reload only where the embedding is called embed_tokens; else it leaves the head's factors unread."""
    base = make_base(tmp_path / "gpt2", model_type="gpt2", **GPT2)
    config = LoraConfig(r=4, target_modules=["wte", "lm_head"], ensure_weight_tying=True, task_type=CLM)
    model = get_peft_model(load_model(base), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
        trained: Tensor = model(INPUT_IDS[None]).logits[0]
    model.save_pretrained(tmp_path / "a")
    got = op_logits(base, compile_package(read_package(tmp_path / "a"), spec_of(base)), INPUT_IDS)
    assert (got - trained).abs().max() < TOLERANCE


def test_block_diagonal_beside_dense(tiny_base: Path, tmp_path: Path) -> None:
    blocks = BdLoraConfig(target_modules_bd_a=["1.self_attn.o_proj"], nblocks=2, match_strict=False)
    config = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], use_bdlora=blocks, task_type=CLM)
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config)) < TOLERANCE


def test_pooled_inputs_as_peft_pools_them(tmp_path: Path) -> None:
    """peft pools only over GPTQ bases, so its layer is called by itself."""

    a, b = nn.Linear(4, 4), nn.Linear(4, 8)
    host: Any = SimpleNamespace(
        in_features=16, training=False, scaling={"x": 2.0}, qalora_group_size={"x": 4},
        lora_dropout={"x": nn.Identity()}, lora_A={"x": a}, lora_B={"x": b},
    )  # fmt: skip
    tensors = {name: (a if "lora_A" in name else b).weight.detach().clone() for name in lora_tensors()}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_qalora": True, "qalora_group_size": 4}
    adapter = compile_package(read_package(write_raw(tmp_path / "p", config, tensors)), SMALL_SPEC)
    (op,) = adapter.ops["model.layers.0.attn.q_proj"]
    x, y = torch.randn(3, 16), torch.randn(3, 8)
    want = QALoraLinearVariant.forward(host, active_adapter="x", x=x, result=y)
    assert isinstance(op, LowRank)
    got = [op.reference(row, out, None) for row, out in zip(x, y, strict=True)]
    torch.testing.assert_close(torch.stack(got), want)


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_what_changed_the_base_is_served_when_converted_only(init: str, tiny_base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init, task_type=CLM)
    model = get_peft_model(load_model(tiny_base), config).eval()
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = init
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        want: Tensor = model(INPUT_IDS[None]).logits[0]
    model.save_pretrained(tmp_path / "raw")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with pytest.raises(UnsupportedKindError, match="path_initial_model_for_weight_conversion"):
        read_package(tmp_path / "raw")
    adapter = compile_package(read_package(tmp_path / "plain"), spec_of(tiny_base))
    assert (op_logits(tiny_base, adapter, INPUT_IDS) - want).abs().max() < 1e-4  # the base was rounded once more


def test_magnitudes_of_a_resized_head_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["lm_head"], use_dora=True, task_type=CLM)
    package = read_package(resized.save(tiny_base, tmp_path / "a", config, 323))
    with pytest.raises(UnsupportedKindError, match="DoRA of 'lm_head' with a resized vocabulary"):
        compile_package(package, spec_of(tiny_base))


def test_the_heads_own_bias_is_left_out(tmp_path: Path) -> None:
    base = make_base(tmp_path / "phi", model_type="phi", tie_word_embeddings=False, num_key_value_heads=4)
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type=CLM)
    path = make_adapter(base, tmp_path / "a", config)
    assert "base_model.model.lm_head.base_layer.bias" in load_file(path / "adapter_model.safetensors")
    assert error(base, path) < TOLERANCE


def test_norms_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, b, a = torch.randn(23, 16), torch.randn(23, 4), torch.randn(4, 16)
    whole = torch.linalg.norm(weight + b @ a, dim=1)
    monkeypatch.setattr("adapters.kinds.lora.modules._CHUNK", 80)
    torch.testing.assert_close(row_norms(weight, b, a), whole)


def test_the_oracle_ties_what_was_trained_tied(tiny_base: Path, tmp_path: Path) -> None:
    """peft's own reload keeps the tie where the embedding is called embed_tokens, so it may be the oracle above."""
    config = LoraConfig(r=4, target_modules=["embed_tokens"], ensure_weight_tying=True, task_type=CLM)
    path = make_adapter(tiny_base, tmp_path / "a", config)
    model = PeftModel.from_pretrained(load_model(tiny_base), path)
    assert "lora_A" in str([name for name, _ in model.get_output_embeddings().named_parameters()])
