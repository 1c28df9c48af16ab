"""A base as sentence-transformers saves one: a backbone without a head, and files that say how vectors are made.

Adapters as it saves them: of the backbone alone, with the same files beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import processors
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from tests.bounds import HIDDEN
from tests.factory import load, make_adapter, make_base, make_tokenizer
from tests.server.api.pooling.sentence_models import MEAN, PROMPT, DenseLayer, pooled, through, write_modules
from tests.server.api.support import error_of
from tests.server.live import Live, live_server

NAME = "tiny"
torch.manual_seed(5)
LAYER = DenseLayer.of(64, 24, nn.Tanh())
TEXTS = ["a short one", "Then there is a text that is long enough to be cut. " * 3, "ünïcode"]


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
    return write_modules(path, MEAN, LAYER, "Normalize")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return make_adapter(base, tmp_path_factory.mktemp("lora") / "a", config, std=0.3)


@pytest.fixture(scope="module")
def server(base: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("data"), adapters=[("lora", str(lora))]) as live:
        yield live


@torch.no_grad()
def encoded(base: Path, text: str, package: Path | None = None, *, dense: bool = True, **truncation: Any) -> Tensor:
    """The vector of one text as sentence-transformers computes it, by transformers and peft."""
    tokenizer = AutoTokenizer.from_pretrained(base, truncation_side=truncation.pop("side", "right"))
    inputs = tokenizer(text, return_tensors="pt", **truncation)
    model: Any = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    if package is not None:
        model = PeftModel.from_pretrained(load(base), package).eval().base_model.model.model
    vector = model(input_ids=inputs.input_ids).last_hidden_state[0].mean(0)
    return normalize(LAYER(vector) if dense else vector, dim=0)


def vectors(server: Live, **body: Any) -> Tensor:
    response = server.post("/v1/embeddings", body)
    assert response.status_code == 200, response.text
    return torch.tensor([entry["embedding"] for entry in response.json()["data"]])


def test_vectors_are_pooled_as_the_files_say(server: Live, base: Path, lora: Path) -> None:
    for model, package in ((NAME, None), ("lora", lora)):
        want = torch.stack([encoded(base, text, package) for text in TEXTS])
        torch.testing.assert_close(vectors(server, model=model, input=TEXTS), want, rtol=0, atol=HIDDEN)
        cut = vectors(server, model=model, input=TEXTS, dimensions=8)
        torch.testing.assert_close(cut, normalize(want[:, :8], dim=1), rtol=0, atol=HIDDEN)
        states = torch.stack([encoded(base, text, package, dense=False) for text in TEXTS])
        plain = vectors(server, model=model, input=TEXTS, pooling="mean")
        torch.testing.assert_close(plain, states, rtol=0, atol=HIDDEN)
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


ADAPTERS: dict[str, tuple[dict[str, Any], list[DenseLayer | str]]] = {
    "mean": (MEAN, [DenseLayer.of(64, 24, nn.Tanh()), "Normalize"]),
    "weightedmean": ({"pooling_mode": "weightedmean", "include_prompt": False}, ["Dropout", "Normalize"]),
    "max": (
        {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False},
        [DenseLayer.of(64, 32, nn.GELU(), bias=False), DenseLayer.of(32, 32, nn.Identity(), residual=True)],
    ),
    "mean_sqrt_len_tokens": (
        {"pooling_mode": ["mean_sqrt_len_tokens"], "include_prompt": False},
        [DenseLayer.of(64, 16, nn.SiLU(), residual=True)],
    ),
    "cls": ({"pooling_mode": "cls", "include_prompt": False}, []),
    "lasttoken": ({"pooling_mode": "lasttoken"}, ["Normalize"]),
}


@pytest.fixture(scope="module")
def backbone(base: Path) -> Any:
    """The backbone with an adapter of its own."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="FEATURE_EXTRACTION")
    model = get_peft_model(AutoModel.from_pretrained(base, dtype=torch.float32), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def upload(server: Live, folder: Path, name: str) -> dict[str, Any]:
    archive = Path(shutil.make_archive(str(folder.with_name(name)), "tar", folder))
    with server.http() as http:
        added = http.post(
            "/v1/adapters?replace=true", data={"name": name}, files={"file": ("a.tar", archive.read_bytes())}
        )
    assert added.status_code in (200, 201), added.text
    told: dict[str, Any] = added.json()
    return told


@pytest.mark.parametrize("mode", ADAPTERS)
def test_adapters_have_modules_and_a_prompt_of_their_own(
    server: Live, base: Path, backbone: Any, tmp_path: Path, mode: str
) -> None:
    pooling, others = ADAPTERS[mode]
    usual = {"prompts": {"query": PROMPT, "document": ""}, "default_prompt_name": "query"}
    folder = write_modules(tmp_path / "package", pooling, *others, prompts=usual)
    backbone.save_pretrained(folder)
    assert upload(server, folder, mode.replace("_", "-"))["warnings"] == []
    tokenizer = AutoTokenizer.from_pretrained(base)
    layers = [one for one in others if isinstance(one, DenseLayer)]

    def wanted(text: str, prompt: str = PROMPT, size: int | None = None) -> Tensor:
        skipped = len(tokenizer(prompt).input_ids) - 1 if pooling.get("include_prompt") is False else 0
        with torch.no_grad():
            states = backbone(**tokenizer(prompt + text, return_tensors="pt")).last_hidden_state[0]
        vector = through(pooled(states, mode, skipped), layers)[:size]
        return normalize(vector, dim=0) if "Normalize" in others else vector

    asked = partial(vectors, server, model=mode.replace("_", "-"))
    bound = HIDDEN
    torch.testing.assert_close(asked(input=TEXTS), torch.stack(list(map(wanted, TEXTS))), rtol=0, atol=bound)
    bare = torch.stack([wanted(text, "") for text in TEXTS])
    for name in ("document", ""):
        torch.testing.assert_close(asked(input=TEXTS, prompt_name=name), bare, rtol=0, atol=bound)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    torch.testing.assert_close(asked(input=ids), bare, rtol=0, atol=bound)
    few = torch.stack([normalize(wanted(text, size=8), dim=0) for text in TEXTS])
    torch.testing.assert_close(asked(input=TEXTS, dimensions=8, normalize=True), few, rtol=0, atol=HIDDEN)
    one, other = (normalize(wanted(text), dim=0) for text in TEXTS[:2])
    body = {"model": mode.replace("_", "-"), "text_1": TEXTS[0], "text_2": TEXTS[1]}
    assert server.post("/v1/score", body).json()["data"][0]["score"] == pytest.approx(float(one @ other), abs=1e-5)


def test_newer_adapters_name_no_task_and_read_texts_in_conversations(
    server: Live, base: Path, backbone: Any, tmp_path: Path
) -> None:
    usual = {"prompts": {"query": PROMPT}, "default_prompt_name": "query"}
    folder = write_modules(tmp_path / "package", {"pooling_mode": "mean", "include_prompt": False}, prompts=usual)
    backbone.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
    reading = {"modality_config": {"text": {}, "message": {"format": "flat"}}, "module_output_name": "token_embeddings"}
    (folder / "sentence_bert_config.json").write_text(json.dumps(reading))
    upload(server, folder, "newer")
    tokenizer = AutoTokenizer.from_pretrained(base)
    said = [[{"role": "system", "content": PROMPT}, {"role": "user", "content": text}] for text in TEXTS]
    with torch.no_grad():
        states = [backbone(**tokenizer.apply_chat_template(one, return_tensors="pt", return_dict=True)) for one in said]
    want = torch.stack([one.last_hidden_state[0].mean(0) for one in states])  # of the prompt as well
    torch.testing.assert_close(vectors(server, model="newer", input=TEXTS), want, rtol=0, atol=HIDDEN)


def test_what_of_an_adapter_is_not_served_is_said(server: Live, backbone: Any, tmp_path: Path) -> None:
    folder = write_modules(tmp_path / "package", MEAN, "LSTM")
    backbone.save_pretrained(folder)
    (warning,) = upload(server, folder, "lstm")["warnings"]
    assert "it has a module 'LSTM'" in warning
    message = error_of(server.post("/v1/embeddings", {"model": "lstm", "input": "a"}))["message"]
    assert "it has a module 'LSTM'" in message
    assert vectors(server, model="lstm", input=TEXTS, pooling="mean").shape == (3, 64)
    shutil.rmtree(folder / "1_Pooling")
    (warning,) = upload(server, write_only(folder), "alone")["warnings"]
    assert "its folder '1_Pooling' is missing" in warning


def write_only(folder: Path) -> Path:
    """``folder`` whose modules are those that pool, by a file that is not there."""
    write_modules(folder, MEAN)
    shutil.rmtree(folder / "1_Pooling")
    return folder


def test_another_layer_is_another_version(server: Live, backbone: Any, tmp_path: Path) -> None:
    folder = write_modules(tmp_path / "package", MEAN, DenseLayer.of(64, 8, nn.ReLU()))
    backbone.save_pretrained(folder)
    assert upload(server, folder, "layered")["version"] == 1
    shutil.rmtree(folder / "2_Dense")
    DenseLayer.of(64, 8, nn.ReLU()).save(folder / "2_Dense")
    assert upload(server, folder, "layered")["version"] == 2


def test_a_text_that_is_cut_to_its_prompt(server: Live, backbone: Any, tmp_path: Path) -> None:
    usual = {"prompts": {"query": PROMPT}, "default_prompt_name": "query"}
    folder = write_modules(tmp_path / "package", {**MEAN, "include_prompt": False}, prompts=usual)
    backbone.save_pretrained(folder)
    upload(server, folder, "cut")
    body = {"model": "cut", "input": TEXTS[0], "truncate_prompt_tokens": 5, "truncation_side": "right"}
    assert "nothing is left of it behind its prompt" in error_of(server.post("/v1/embeddings", body))["message"]


def test_prompts_that_are_not_there(server: Live) -> None:
    for body, words in (
        ({"input": "a", "prompt_name": "none"}, "document, query"),
        ({"input": [1], "prompt_name": "query"}, "goes with texts"),
    ):
        assert words in error_of(server.post("/v1/embeddings", body))["message"].replace('"', "").replace("'", "")


def test_vectors_that_would_be_others_are_refused_unless_asked_for(base: Path, tmp_path: Path) -> None:
    other = tmp_path / NAME
    other.mkdir()
    for file in base.glob("*.*"):
        (other / file.name).symlink_to(file)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (other / name).unlink()
    write_modules(other, MEAN, "LSTM")
    with live_server(other, tmp_path / "data") as live:
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/score", {"text_1": "a", "text_2": "b"})):
            response = live.post(path, body)
            assert response.status_code == 400
            assert "a module 'LSTM'" in error_of(response)["message"]
        want = encoded(base, TEXTS[0], dense=False)
        torch.testing.assert_close(vectors(live, input=TEXTS[0], pooling="mean")[0], want, rtol=0, atol=HIDDEN)
