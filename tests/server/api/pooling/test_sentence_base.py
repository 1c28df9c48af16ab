"""A base as sentence-transformers saves one: a backbone without a head, and files that say how vectors are made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import processors
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from adapters.errors import PackageError
from adapters.package.sentence_model import read_sentence_model
from tests.bounds import HIDDEN
from tests.factory import load, make_adapter, make_base, make_tokenizer
from tests.server.api.support import error_of
from tests.server.live import Live, live_server

NAME = "tiny"
TEXTS = ["a short one", "Then there is a text that is long enough to be cut. " * 3, "ünïcode"]
PROMPT = "Instruct: find it\nQuery: "
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}


def write_modules(path: Path, pooling: dict[str, Any], *others: str) -> Path:
    """The files of sentence-transformers, in the folder ``path``."""
    kinds = ["Transformer", "Pooling", *others]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (path / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": PROMPT, "document": ""}}))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone alone, whose tokenizer ends every text with a token, as embedding models' do."""
    made = make_base(tmp_path_factory.mktemp("plain") / NAME)
    path = tmp_path_factory.mktemp("sentence") / NAME
    AutoModel.from_pretrained(made).save_pretrained(path)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", pair="$A <|im_end|> $B <|im_end|>", special_tokens=[("<|im_end|>", 258)]
    )
    tokenizer.save_pretrained(path)
    return write_modules(path, MEAN, "Normalize")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return make_adapter(base, tmp_path_factory.mktemp("lora") / "a", config, std=0.3)


@pytest.fixture(scope="module")
def server(base: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("data"), adapters=[("lora", str(lora))]) as live:
        yield live


@torch.no_grad()
def encoded(base: Path, text: str, package: Path | None = None, **truncation: Any) -> Tensor:
    """The vector of one text as sentence-transformers computes it, by transformers and peft."""
    tokenizer = AutoTokenizer.from_pretrained(base, truncation_side=truncation.pop("side", "right"))
    inputs = tokenizer(text, return_tensors="pt", **truncation)
    model: Any = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    if package is not None:
        model = PeftModel.from_pretrained(load(base), package).eval().base_model.model.model
    return normalize(model(input_ids=inputs.input_ids).last_hidden_state[0].mean(0), dim=0)


def vectors(server: Live, **body: Any) -> Tensor:
    response = server.post("/v1/embeddings", body)
    assert response.status_code == 200, response.text
    return torch.tensor([entry["embedding"] for entry in response.json()["data"]])


def test_vectors_are_pooled_as_the_files_say(server: Live, base: Path, lora: Path) -> None:
    for model, package in ((NAME, None), ("lora", lora)):
        want = torch.stack([encoded(base, text, package) for text in TEXTS])
        torch.testing.assert_close(vectors(server, model=model, input=TEXTS), want, rtol=0, atol=HIDDEN)
    want = torch.stack([encoded(base, PROMPT + text) for text in TEXTS])
    torch.testing.assert_close(vectors(server, input=TEXTS, prompt_name="query"), want, rtol=0, atol=HIDDEN)
    score = server.post("/v1/score", {"text_1": TEXTS[0], "text_2": TEXTS[1]}).json()["data"][0]["score"]
    assert score == pytest.approx(float(encoded(base, TEXTS[0]) @ encoded(base, TEXTS[1])), abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_are_cut_as_transformers_cuts_them(server: Live, base: Path, side: str) -> None:
    body = {"input": TEXTS, "truncate_prompt_tokens": 20, "truncation_side": side}
    want = torch.stack([encoded(base, text, side=side, truncation=True, max_length=20) for text in TEXTS])
    torch.testing.assert_close(vectors(server, **body), want, rtol=0, atol=HIDDEN)
    usage = server.post("/v1/embeddings", body).json()["usage"]
    lengths = [len(AutoTokenizer.from_pretrained(base)(text).input_ids) for text in TEXTS]
    assert usage["prompt_tokens"] == sum(min(length, 20) for length in lengths)


def test_an_adapter_saved_by_sentence_transformers_is_served(server: Live, base: Path, tmp_path: Path) -> None:
    """Of the backbone alone, with the same files beside it as a model has."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="FEATURE_EXTRACTION")
    model = get_peft_model(AutoModel.from_pretrained(base, dtype=torch.float32), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    package = write_modules(tmp_path / "package", MEAN, "Normalize")
    model.save_pretrained(package)
    with server.http() as http:
        whole = Path(shutil.make_archive(str(tmp_path / "whole"), "tar", package))
        files = {"file": ("a.tar", whole.read_bytes())}
        added = http.post("/v1/adapters", data={"name": "sentences"}, files=files)
    assert added.status_code == 201, added.text
    (warning,) = added.json()["warnings"]
    assert "saved by sentence-transformers" in warning
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        states = [model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    want = normalize(torch.stack([one.mean(0) for one in states]), dim=-1)
    torch.testing.assert_close(vectors(server, model="sentences", input=TEXTS), want, rtol=0, atol=HIDDEN)


def test_prompts_that_are_not_there(server: Live) -> None:
    for body, words in (
        ({"input": "a", "prompt_name": "none"}, "document, query"),
        ({"input": [1], "prompt_name": "query"}, "goes with texts"),
    ):
        assert words in error_of(server.post("/v1/embeddings", body))["message"].replace('"', "").replace("'", "")


@pytest.mark.parametrize(
    ("pooling", "others", "words"),
    [
        ({"pooling_mode": "weightedmean"}, [], "it pools by 'weightedmean'"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, [], "'mean' and 'max'"),
        ({**MEAN, "include_prompt": False}, [], "leaves the tokens of prompts out"),
        (MEAN, ["Dense", "Normalize"], "it has a module 'Dense'"),
    ],
)
def test_what_is_made_otherwise_is_known(
    tmp_path: Path, pooling: dict[str, Any], others: list[str], words: str
) -> None:
    found = read_sentence_model(write_modules(tmp_path, pooling, *others))
    assert found is not None
    assert words in found.problem


def test_newer_files_and_broken_ones(tmp_path: Path) -> None:
    found = read_sentence_model(write_modules(tmp_path, {"pooling_mode": "lasttoken"}))
    assert found is not None
    assert (found.pooled.pooling, found.pooled.normalize, found.problem) == ("last", False, "")
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(PackageError, match=r"modules\.json"):
        read_sentence_model(tmp_path)
    (tmp_path / "modules.json").unlink()
    assert read_sentence_model(tmp_path) is None


def test_vectors_that_would_be_others_are_refused_unless_asked_for(base: Path, tmp_path: Path) -> None:
    other = tmp_path / NAME
    other.mkdir()
    for file in base.glob("*.*"):
        (other / file.name).symlink_to(file)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (other / name).unlink()
    write_modules(other, MEAN, "Dense")
    with live_server(other, tmp_path / "data") as live:
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/score", {"text_1": "a", "text_2": "b"})):
            response = live.post(path, body)
            assert response.status_code == 400
            assert "a module 'Dense'" in error_of(response)["message"]
        want = encoded(base, TEXTS[0])
        torch.testing.assert_close(vectors(live, input=TEXTS[0], pooling="mean")[0], want, rtol=0, atol=HIDDEN)
