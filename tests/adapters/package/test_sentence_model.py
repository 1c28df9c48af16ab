"""What sentence-transformers writes beside a model, and what of it is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import PackageError
from adapters.package.manifest import PooledRef
from adapters.package.sentence_model import read_adapters_model, read_sentence_model


def written(path: Path, pooling: dict[str, Any], *kinds: str, first: str = "Transformer") -> Path:
    """A folder of theirs with modules of ``kinds`` behind pooling, without their files."""
    types = [first, "Pooling", *kinds]
    modules = [
        {"path": f"{i}_{kind}" if i else "", "type": kind if "." in kind else f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(types)
    ]
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (path / "modules.json").write_text(json.dumps(modules))
    return path


@pytest.mark.parametrize(
    ("pooling", "kinds", "words"),
    [
        ({"pooling_mode": "attention"}, [], "it pools by 'attention'"),
        ({"pooling_mode": ["mean", "max"]}, [], "'mean' and 'max'"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, [], "'max' and 'mean'"),
        ({}, ["LSTM"], "it has a module 'LSTM'"),
        ({}, ["custom_st.Dense"], "it has a module 'custom_st.Dense'"),
        ({}, ["Pooling"], "it pools twice"),
        ({}, ["Normalize", "Dense"], "in the order 'Transformer, Pooling, Normalize, Dense'"),
    ],
)
def test_what_is_made_otherwise_is_known(tmp_path: Path, pooling: dict[str, Any], kinds: list[str], words: str) -> None:
    found = read_sentence_model(written(tmp_path, pooling, *kinds))
    assert found is not None
    assert words in found.problem


def test_modules_before_pooling_are_known(tmp_path: Path) -> None:
    found = read_sentence_model(written(tmp_path, {}, first="WordEmbeddings"))
    assert found is not None
    assert "it has a module 'WordEmbeddings'" in found.problem


def test_vectors_of_tokens_are_not_those_of_texts(tmp_path: Path) -> None:
    folder = written(tmp_path, {}, "Normalize")
    (folder / "2_Normalize").mkdir()
    (folder / "2_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')
    found = read_sentence_model(folder)
    assert found is not None
    assert "'2_Normalize' changes other things" in found.problem


def test_newer_and_older_files(tmp_path: Path) -> None:
    folder = written(tmp_path, {"pooling_mode": "lasttoken"})
    found = read_sentence_model(folder)
    assert found is not None
    assert (found.pooled, found.problem, found.pools_prompts) == (PooledRef(pooling="last", normalize=False), "", True)
    older = {"pooling_mode_mean_tokens": False, "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(older))
    found = read_sentence_model(folder)
    assert found is not None
    assert (found.pooled.pooling, found.pools_prompts) == ("mean", False)


def test_prompts(tmp_path: Path) -> None:
    folder = written(tmp_path, {})
    prompts = folder / "config_sentence_transformers.json"
    prompts.write_text('{"prompts": {"a": "A: ", "b": null}, "default_prompt_name": "a", "similarity_fn_name": null}')
    found = read_sentence_model(folder)
    assert found is not None
    assert (found.prompts, found.default_prompt) == ({"a": "A: ", "b": ""}, "a")
    prompts.write_text('{"prompts": {}, "default_prompt_name": "a"}')
    with pytest.raises(PackageError, match="the default prompt 'a' is not among them"):
        read_sentence_model(folder)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ({"do_lower_case": True}, "do_lower_case"),
        ({"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}, "processing_kwargs"),
        ({"transformer_task": "text-generation", "module_output_name": "causal_logits"}, "'text-generation'"),
    ],
)
def test_other_ways_to_read_are_known(tmp_path: Path, reading: dict[str, Any], words: str) -> None:
    folder = written(tmp_path, {})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    found = read_sentence_model(folder)
    assert found is not None
    assert (found.problem, found.in_conversations) == ("", False)
    (folder / "sentence_bert_config.json").write_text(json.dumps(reading))
    found = read_sentence_model(folder)
    assert found is not None
    assert words in found.problem


def test_files_of_an_adapter(tmp_path: Path) -> None:
    folder = written(tmp_path, {"pooling_mode": "max"})
    found, notes = read_adapters_model(folder, None)
    assert (found and found.pooled.pooling, notes) == ("max", ())
    (folder / "1_Pooling" / "config.json").rename(folder / "1_Pooling.config.json")  # as packages have it
    assert read_adapters_model(folder, None) == (found, ())
    (folder / "1_Pooling.config.json").unlink()
    assert read_adapters_model(folder, None)[0] is None
    (folder / "modules.json").unlink()
    assert read_adapters_model(folder, None) == (None, ())


def test_broken_files(tmp_path: Path) -> None:
    folder = written(tmp_path, {})
    (folder / "1_Pooling" / "config.json").write_text("[]")
    with pytest.raises(PackageError, match=r"1_Pooling/config\.json"):
        read_sentence_model(folder)
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}, {"path": "../up", '
                                         '"type": "sentence_transformers.models.Pooling"}]')  # fmt: skip
    with pytest.raises(PackageError, match=r"'\.\./up' leads out of its folder"):
        read_sentence_model(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(PackageError, match=r"modules\.json"):
        read_sentence_model(folder)
