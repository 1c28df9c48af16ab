"""Heads of adapters' own, of many sizes in one batch with requests that generate, against peft alone."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

from adapters.package.manifest import BaseRef, Manifest, PooledRef, encode_manifest
from bases.fingerprint import base_fingerprint
from tests import oracle
from tests.bounds import LOGITS
from tests.factory import make_tokenizer
from tests.server.api.pooling.classifiers import ACTIVATIONS, make_classifier, outputs
from tests.server.api.support import BASE, answer, archive, error_of, wanted
from tests.server.live import Live, live_server

QV = ["q_proj", "v_proj"]
TEXTS = ["good", "a rather long text that says nothing at all, twice. " * 2, "ünïcode"]
SENTIMENT: dict[str, Any] = {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "pad_token_id": 256}
NAMES = ("bad", "fair", "good")
SCORES = 4 * LOGITS  # outputs of a head: weights of 0.3 where the base's have 0.12, and all 64 of a state


@dataclass(frozen=True)
class Case:
    """An adapter with a head, and what is to be known of it."""

    config: Any
    num_labels: int
    activation: str = "softmax"
    beside: dict[str, Any] | None = None
    labels: tuple[str, ...] = ()


CASES = {
    "seq-3": Case(LoraConfig(r=4, target_modules=QV, task_type="SEQ_CLS"), 3, "softmax", SENTIMENT, NAMES),
    "seq-2": Case(LoraConfig(r=2, use_dora=True, target_modules=["k_proj"], task_type="SEQ_CLS"), 2),
    "seq-77": Case(
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="SEQ_CLS"), 77
    ),
    "many": Case(
        LoraConfig(r=4, target_modules=QV, modules_to_save=["norm"], task_type="SEQ_CLS"),
        5, "sigmoid", {"problem_type": "multi_label_classification"},
    ),
    "reward": Case(LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"), 1, ""),
    "cross": Case(
        LoraConfig(r=4, target_modules=QV, task_type="SEQ_CLS"),
        1, "sigmoid", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
    ),
    "prompt-cls": Case(PromptTuningConfig(num_virtual_tokens=4, task_type="SEQ_CLS"), 4),
    "prefix-cls": Case(PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"), 2),
    "tokens": Case(LoraConfig(r=4, target_modules=QV, task_type="TOKEN_CLS"), 6),
}  # fmt: skip
OF_TEXTS = [name for name in CASES if name != "tokens"]


@pytest.fixture(scope="module")
def classifiers(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("classifiers")
    return {
        name: make_classifier(base, root / name, copy.deepcopy(one.config), one.num_labels, seed=i, beside=one.beside)
        for i, (name, one) in enumerate(CASES.items())
    }


@pytest.fixture(scope="module")
def heads(
    base: Path, packages: dict[str, Path], classifiers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A server of all of them, and of adapters that generate, whose steps are small."""
    adapters = [(name, str(path)) for name, path in {**classifiers, "lora": packages["lora"]}.items()]
    data_dir = tmp_path_factory.mktemp("heads")
    with live_server(base, data_dir, adapters=adapters, engine={"max_num_batched_tokens": 64}) as live:
        yield live
        live.wait_idle()


def ids_of(text: str) -> list[int]:
    ids: list[int] = make_tokenizer().encode(text)
    return ids


def classes(server: Live, model: str, **body: Any) -> list[dict[str, Any]]:
    response = server.post("/v1/classify", {"model": model, **body})
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return data


def test_many_sizes_of_heads_and_generation_in_one_batch(
    heads: Live, base: Path, packages: dict[str, Path], classifiers: dict[str, Path]
) -> None:
    with ThreadPoolExecutor(16) as pool:
        texts = [pool.submit(answer, heads, name) for name in (BASE, "lora", BASE, "lora")]
        found = dict(zip(OF_TEXTS, pool.map(lambda name: classes(heads, name, input=TEXTS), OF_TEXTS), strict=True))
        written = [text.result() for text in texts]
    assert written == [wanted(base, package) for package in (None, packages["lora"])] * 2
    for name, entries in found.items():
        case = CASES[name]
        for text, entry in zip(TEXTS, entries, strict=True):
            logits = outputs(base, classifiers[name], case.num_labels, ids_of(text))
            want = ACTIVATIONS[case.activation](logits)
            torch.testing.assert_close(torch.tensor(entry["probs"]), want, rtol=0, atol=SCORES)
            label = int(torch.tensor(entry["probs"]).argmax())
            assert entry["label"] == (case.labels[label] if case.labels else f"LABEL_{label}")
            assert entry["num_classes"] == case.num_labels
    raw = classes(heads, "seq-3", input=TEXTS[0], use_activation=False)
    logits = outputs(base, classifiers["seq-3"], 3, ids_of(TEXTS[0]))
    torch.testing.assert_close(torch.tensor(raw[0]["probs"]), logits, rtol=0, atol=SCORES)


def test_every_token_has_a_class(heads: Live, base: Path, classifiers: dict[str, Path]) -> None:
    found = classes(heads, "tokens", input=TEXTS)
    for text, entry in zip(TEXTS, found, strict=True):
        want = outputs(base, classifiers["tokens"], 6, ids_of(text)).softmax(-1)
        probs = torch.tensor([token["probs"] for token in entry["tokens"]])
        torch.testing.assert_close(probs, want, rtol=0, atol=SCORES)
        assert [token["label"] for token in entry["tokens"]] == [f"LABEL_{i}" for i in probs.argmax(-1)]
        assert [token["token_id"] for token in entry["tokens"]] == ids_of(text)
        spans = [(token["start"], token["end"]) for token in entry["tokens"]]
        assert spans == make_tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]
    (cut,) = classes(heads, "tokens", input=TEXTS[1], truncate_prompt_tokens=3)
    assert cut["tokens"][-1]["end"] == len(TEXTS[1])
    assert [(one["start"], one["end"]) for one in cut["tokens"]] == [
        (one["start"], one["end"]) for one in found[1]["tokens"][-3:]
    ]
    (of_ids,) = classes(heads, "tokens", input=ids_of(TEXTS[0]))
    assert all("start" not in token for token in of_ids["tokens"])
    body = {"model": "tokens", "input": TEXTS[1], "encoding_format": "base64", "use_activation": False}
    data = heads.post("/pooling", body).json()["data"][0]["data"]
    rows = torch.tensor(np.frombuffer(base64.b64decode(data), "<f4")).view(-1, 6)
    torch.testing.assert_close(rows, outputs(base, classifiers["tokens"], 6, ids_of(TEXTS[1])), rtol=0, atol=SCORES)


def test_pairs_of_texts(heads: Live, base: Path, classifiers: dict[str, Path]) -> None:
    firsts, seconds = ["good", "fair"], ["bad", "a longer text"]
    found = classes(heads, "seq-3", input=firsts, text_pair=seconds)
    for first, second, entry in zip(firsts, seconds, found, strict=True):
        want = outputs(base, classifiers["seq-3"], 3, make_tokenizer()(first, second).input_ids).softmax(-1)
        torch.testing.assert_close(torch.tensor(entry["probs"]), want, rtol=0, atol=SCORES)
    assert classes(heads, "seq-3", input="good", text_pair="bad")[0]["label"] == found[0]["label"]


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        ("seq-3", {"input": ["a", "b"], "text_pair": "c"}, "a text for each of the 2 of `input`"),
        ("seq-3", {"input": "a", "text_pair": []}, "a text for each of the 1 of `input`"),
        ("seq-3", {"input": "a", "text_pair": ""}, "a text for each of the 1 of `input`"),
        ("seq-3", {"input": [1, 2], "text_pair": "c"}, "not with token ids"),
        ("seq-3", {"messages": [{"role": "user", "content": "a"}], "text_pair": "c"}, "`messages`"),
        ("seq-3", {"input": "a", "text_pair": 7}, "text_pair"),
        ("tokens", {"input": "a", "text_pair": "b"}, "leave out `text_pair`"),
    ],
)
def test_pairs_that_are_none(heads: Live, model: str, body: dict[str, Any], words: str) -> None:
    response = heads.post("/v1/classify", {"model": model, **body})
    assert response.status_code == 400, response.text
    assert words in error_of(response)["message"]


def test_padding_at_the_end_is_not_read(heads: Live, base: Path, classifiers: dict[str, Path]) -> None:
    ids = [*ids_of("good"), 256, 256]  # the base's padding, which the package's config.json names
    found = classes(heads, "seq-3", input=ids)
    want = outputs(base, classifiers["seq-3"], 3, ids).softmax(-1)
    torch.testing.assert_close(torch.tensor(found[0]["probs"]), want, rtol=0, atol=SCORES)


def test_plain_numbers_of_any_task(heads: Live, base: Path, classifiers: dict[str, Path]) -> None:
    def data(model: str, **body: Any) -> Any:
        response = heads.post("/pooling", {"model": model, "input": TEXTS[1], **body})
        assert response.status_code == 200, response.text
        (entry,) = response.json()["data"]
        assert (entry["object"], entry["index"]) == ("pooling", 0)
        return torch.tensor(entry["data"])

    ids = ids_of(TEXTS[1])
    reward = outputs(base, classifiers["reward"], 1, ids)
    torch.testing.assert_close(data("reward"), reward, rtol=0, atol=SCORES)
    hidden = oracle.hidden(base, None, ids)
    torch.testing.assert_close(data(BASE, task="token_embed", normalize=False), hidden, rtol=0, atol=LOGITS)
    unit = torch.nn.functional.normalize(hidden[-1], dim=0)
    torch.testing.assert_close(data(BASE), unit, rtol=0, atol=LOGITS)
    assert data("reward", task="embed").shape == (64,)  # what goes into the head


def test_conversations_are_written_by_the_template(heads: Live, base: Path, classifiers: dict[str, Path]) -> None:
    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
    rendered = make_tokenizer().apply_chat_template(messages, tokenize=False)
    found = classes(heads, "reward", messages=messages)
    want = outputs(base, classifiers["reward"], 1, ids_of(rendered))
    torch.testing.assert_close(torch.tensor(found[0]["probs"]), want, rtol=0, atol=SCORES)


def test_a_head_writes_no_text_and_others_have_no_classes(heads: Live) -> None:
    chat = {"model": "seq-3", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {"model": "seq-3", "prompt": "hi"})):
        error = error_of(heads.post(path, body))
        assert "/v1/classify" in error["message"]
        assert error["param"] == "model"
    for model in (BASE, "lora"):
        assert "no head" in error_of(heads.post("/v1/classify", {"model": model, "input": "hi"}))["message"]
    several = error_of(heads.post("/v1/score", {"model": "seq-3", "text_1": "a", "text_2": "b"}))
    assert "3 classes" in several["message"]
    wrong = error_of(heads.post("/pooling", {"model": "tokens", "input": "a", "task": "classify"}))
    assert "token_classify" in wrong["message"]


def test_versions_with_heads_are_swapped_and_rolled_back(
    heads: Live, base: Path, classifiers: dict[str, Path], tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    make_classifier(base, trained, LoraConfig(r=4, target_modules=QV, task_type="SEQ_CLS"), 4, seed=9)
    manifest = Manifest(
        kind="lora",
        base=BaseRef("tiny", base_fingerprint(base)),
        created=datetime.now(UTC),
        pooled=PooledRef(labels=["n", "e", "s", "w"], problem_type="single_label_classification", pooling="mean"),
    )
    (trained / "hotswap.json").write_bytes(encode_manifest(manifest))
    with heads.http() as http:
        for version, package in enumerate((classifiers["seq-3"], trained), 1):
            response = http.post(
                "/v1/adapters",
                data={"name": "swapped", "replace": "true"},
                files={"file": ("a.tar", archive(package, tmp_path))},
            )
            assert response.status_code == 201, response.text
            assert response.json()["version"] == version
            if version == 1:
                (first,) = classes(heads, "swapped", input="where?")
        (second,) = classes(heads, "swapped", input="where?")
        assert second["num_classes"] == 4
        assert second["label"] in ("n", "e", "s", "w")
        assert (first["num_classes"], first["label"] in SENTIMENT["id2label"].values()) == (3, True)
        assert http.post("/v1/adapters/swapped/rollback").status_code == 200
    assert classes(heads, "swapped", input="where?")[0]["probs"] == first["probs"]
