"""The counts that must come out exactly, from the code that trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.trainer.plan.support import blueprint_of, shape_config
from tests.trainer.support import make_config
from trainer.added_tokens import add_tokens
from trainer.base_model import load_base
from trainer.config.methods import METHODS
from trainer.errors import ConfigError
from trainer.methods import apply_method, trainable_parameters
from trainer.plan.meta import Blueprint, plan_method
from trainer.plan.model_presets import MODEL_PRESETS, model_preset
from trainer.plan.report import percent

SEVEN = "target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"


def blueprint(name: str) -> Blueprint:
    shape = model_preset(name)
    return Blueprint(shape.name, shape.config(), torch.bfloat16, amend=shape.amend)


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    model = blueprint(name).build(torch.bfloat16).model
    assert sum(parameter.numel() for parameter in model.parameters()) == MODEL_PRESETS[name].parameters


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("chatglm-6b", 6_255_206_400), ("yuan2-2b", 2_088_724_480), ("smollm2-135m", 134_515_008)],
)
def test_the_bases_count(shape: str, parameters: int) -> None:
    assert MODEL_PRESETS[shape].parameters == parameters


@pytest.mark.parametrize(
    ("shape", "settings", "trainable", "share"),
    [
        ("chatglm-6b", "method=lora r=8 target_modules=[query_key_value]", 3_670_016, "0.0586"),
        ("chatglm-6b", "method=freeze layers=5", 1_006_899_200, "16.10"),
        ("chatglm-6b", "method=prefix tokens=16 projection_hidden_size=4096", 956_600_320, "13.26"),
        ("chatglm-6b", "method=prefix tokens=16 projection=false", 3_670_016, "0.0586"),
        ("chatglm-6b", "method=prompt tokens=16", 65_536, "0.0010"),
        ("chatglm2-6b", "method=prefix tokens=128 projection=false", 1_835_008, "0.0294"),
        ("chatglm2-6b", "method=prefix tokens=136 projection=false", 1_949_696, "0.0312"),
        ("yuan2-2b", f"method=lora r=8 {SEVEN}", 9_043_968, "0.4311"),
        ("yuan2-2b", "method=lora r=8 target_modules=[q_proj,k_proj,v_proj]", 2_359_296, "0.1128"),
        ("yuan2-2b", f"method=lora r=8 use_dora=true {SEVEN}", 9_682_944, "0.4614"),
        ("smollm2-135m", "method=lora r=8 target_modules=all-linear", 2_442_240, "1.78"),
        ("smollm2-135m", "method=lora r=8 target_modules=[q_proj,v_proj]", 460_800, "0.3414"),
        ("smollm2-135m", "method=lora r=8 use_dora=true", 2_597_760, "1.89"),
        ("smollm2-135m", "method=ia3", 57_600, "0.0428"),
        ("smollm2-135m", "method=prefix tokens=16 projection=false", 184_320, "0.1368"),
        ("smollm2-135m", "method=prompt tokens=16", 9_216, "0.0069"),
        ("smollm2-135m", "method=ln_tuning", 35_136, "0.0261"),
        ("smollm2-135m", "method=freeze layers=5", 17_700_480, "13.16"),
        ("smollm2-135m", "method=full", 134_515_008, "100.00"),
    ],
)
def test_trainable_parameters_of_a_method_on_a_shape(shape: str, settings: str, trainable: int, share: str) -> None:
    planned = plan_method(blueprint(shape), shape_config(*settings.split()))
    assert planned.trainable == trainable
    assert percent(planned.percent) == share


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "yuan2-2b", "qwen2.5-7b", "qwen3-8b", "mistral-7b"])
def test_every_method_listed_for_an_architecture_fits_it(name: str) -> None:
    shape = blueprint(name)
    shape.config.num_hidden_layers = 5  # as many as the listed Freeze wants; the names are the same in all
    for _label, settings in MODEL_PRESETS[name].rows:
        plan_method(shape, shape_config(*settings.split()))


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_counts_as_it_does_when_it_trains(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    """What the real base trains is the oracle."""
    settings = ["layers=1"] if kind == "freeze" else []
    config = make_config(tmp_path, tiny_base, f"method={kind}", *settings)
    real = trainable_parameters(apply_method(load_base(config), config.method, 8))
    planned = plan_method(blueprint_of(tiny_base), config)
    assert {name: value.shape for name, value in trainable_parameters(planned.model).items()} == {
        name: value.shape for name, value in real.items()
    }


def test_added_tokens_count(tiny_base: Path) -> None:
    """Two rows of the tied embedding beside the rest."""
    config = shape_config("method=lora", "added_tokens=[<sql>, </sql>]")
    base = blueprint_of(tiny_base)
    tokens = add_tokens(base.tokenizer, config.added_tokens or ())
    with_tokens = plan_method(dataclasses.replace(base, tokens=tokens), config)
    assert with_tokens.trainable - plan_method(blueprint_of(tiny_base), config).trainable == 2 * 64


def test_a_text_to_start_from_needs_no_tokenizer() -> None:
    settings = ["method=prompt", "tokens=4", "init_text=hello"]
    assert plan_method(blueprint("smollm2-135m"), shape_config(*settings)).trainable == 4 * 576


def test_an_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chatglm-6b'"):
        model_preset("chatglm6b")


def test_a_method_that_does_not_fit_says_so() -> None:
    with pytest.raises(ConfigError, match="the base has 30 layers"):
        plan_method(blueprint("smollm2-135m"), shape_config("method=freeze", "layers=31"))
