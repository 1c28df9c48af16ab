"""What is read off a model, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from server.model.lean.plan import MOST_TABLES, MlpPlan, Place, Plan
from server.model.lean.reading import NoPlanError, read_plan
from tests.factory import make_base
from tests.server.model.lean.shapes import WINDOW, load, make_shape


def plan_of(name: str, tmp_path: Path) -> Plan:
    return read_plan(load(make_shape(name, tmp_path)))


def test_a_llama(tmp_path: Path) -> None:
    plan = plan_of("llama", tmp_path)
    layer = plan.layers[1]
    names = [place.name for place in (*layer.attention.inputs, layer.attention.output)]
    assert names == [f"model.layers.1.self_attn.{part}_proj" for part in "qkvo"]
    assert isinstance(layer.mlp, MlpPlan)
    assert [p.name.rpartition(".")[2] for p in (*layer.mlp.inputs, layer.mlp.output)] == [
        "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert (layer.mlp.activation, layer.mlp.is_gated, layer.scale, layer.is_parallel) == ("silu", True, 1.0, False)
    assert [norm and norm.place.name.rpartition(".")[2] for norm in
            (layer.pre_attention, layer.post_attention, layer.pre_mlp, layer.post_mlp)] == [
        "input_layernorm", None, "post_attention_layernorm", None,
    ]  # fmt: skip
    assert (plan.embedding.name, plan.head.name) == ("model.embed_tokens", "lm_head")
    assert (layer.attention.table, layer.attention.interleaved) == (0, False)
    assert len(plan.tables) == 1


def test_multipliers_are_as_people_wrote_them(tmp_path: Path) -> None:
    plan = plan_of("granite", tmp_path)
    assert (plan.embedding_scale, plan.logit_scale) == (12.0, 1 / 8)
    assert {layer.scale for layer in plan.layers} == {0.22}
    assert plan.layers[0].attention.rule.scaling == 0.015625


def test_caps_windows_and_norms_around(tmp_path: Path) -> None:
    plan = plan_of("gemma2", tmp_path)
    first, second = plan.layers
    assert (first.attention.rule.softcap, plan.softcap) == (2.0, 3.0)
    assert (first.attention.rule.window, second.attention.rule.window) == (WINDOW, 0)
    assert first.post_attention is not None
    assert first.post_mlp is not None
    assert float(first.post_mlp.weight.mean()) == pytest.approx(1.0, abs=0.2)  # the offset of one is in it


def test_a_table_for_each_kind_of_layer(tmp_path: Path) -> None:
    plan = plan_of("gemma3", tmp_path)
    tables = [layer.attention.table for layer in plan.layers]
    assert sorted(t for t in tables if t is not None) == [0, 1]
    assert {table.extra for table in plan.tables} == {("sliding_attention",), ("full_attention",)}


def with_angles_of_its_own(model: PreTrainedModel, thetas: Sequence[float]) -> PreTrainedModel:
    """Let each layer of a llama turn by a module of its own, as models of older code do."""
    for layer, theta in zip(model.model.layers, thetas, strict=True):
        config = copy.deepcopy(model.config)
        config.rope_parameters["rope_theta"] = theta
        layer.rotary = LlamaRotaryEmbedding(config)

        def turned(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "position_embeddings": layer.rotary(args[0], kwargs["position_ids"])}

        layer.register_forward_pre_hook(turned, with_kwargs=True)
    return model


def test_modules_of_the_same_angles_are_one_table(tmp_path: Path) -> None:
    model = load(make_base(tmp_path, num_hidden_layers=MOST_TABLES + 1))
    plan = read_plan(with_angles_of_its_own(model, [1e4] * (MOST_TABLES + 1)))
    assert len(plan.tables) == 1


def test_more_tables_than_a_step_has_room_for(tmp_path: Path) -> None:
    model = load(make_base(tmp_path, num_hidden_layers=MOST_TABLES + 1))
    with pytest.raises(NoPlanError, match="10 tables of angles"):  # with the model's own
        read_plan(with_angles_of_its_own(model, [1e3 + layer for layer in range(MOST_TABLES + 1)]))


def test_layers_without_positions(tmp_path: Path) -> None:
    assert [layer.attention.table for layer in plan_of("smollm3", tmp_path).layers] == [0, None]


@pytest.mark.parametrize(("name", "is_last"), [("qwen3", False), ("hunyuan", True)])
def test_norms_before_and_behind_the_rotation(name: str, is_last: bool, tmp_path: Path) -> None:
    attention = plan_of(name, tmp_path).layers[0].attention
    assert attention.q_norm is not None
    assert attention.k_norm is not None
    assert attention.norm_is_last == is_last


@pytest.mark.parametrize(
    ("name", "interleaved"), [("glm4", True), ("ernie4_5", True), ("cohere", True), ("phi", False)]
)
def test_how_pairs_stand(name: str, interleaved: bool, tmp_path: Path) -> None:
    assert plan_of(name, tmp_path).layers[0].attention.interleaved == interleaved


@pytest.mark.parametrize(("name", "is_fixed"), [("llama", True), ("llama, yarn", True), ("llama, dynamic", False)])
def test_angles_that_depend_on_the_position_alone(name: str, is_fixed: bool, tmp_path: Path) -> None:
    assert [table.is_fixed for table in plan_of(name, tmp_path).tables] == [is_fixed]


def test_projections_in_one_piece(tmp_path: Path) -> None:
    layer = plan_of("phi3", tmp_path).layers[0]
    assert [place.name for place in layer.attention.inputs] == ["model.layers.0.self_attn.qkv_proj"]
    assert isinstance(layer.mlp, MlpPlan)
    assert [place.name for place in layer.mlp.inputs] == ["model.layers.0.mlp.gate_up_proj"]


@pytest.mark.parametrize("name", ["cohere", "stablelm, parallel"])
def test_attention_and_mlp_side_by_side(name: str, tmp_path: Path) -> None:
    assert all(layer.is_parallel and layer.shares_norm for layer in plan_of(name, tmp_path).layers)


def test_experts_stay_the_models_own(tmp_path: Path) -> None:
    plan = plan_of("mixtral", tmp_path)
    assert all(isinstance(layer.mlp, Place) for layer in plan.layers)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"num_key_value_heads": None}, "the embedding is followed by more"),
    "gpt_neox": ({"num_key_value_heads": None, "head_dim": None}, "attention changes its values"),
    "bloom": ({"num_key_value_heads": None, "head_dim": None}, "attention is patched"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_has_another_shape(model_type: str, tmp_path: Path) -> None:
    config, message = REFUSED[model_type]
    base = make_base(tmp_path, model_type=model_type, **config)
    with pytest.raises(NoPlanError, match=message):
        read_plan(load(base))
