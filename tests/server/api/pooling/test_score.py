"""/v1/score and /v1/rerank: by heads that read both texts at once, and by the cosine of embeddings without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import cosine_similarity

from tests import oracle
from tests.bounds import HIDDEN, LOGITS
from tests.factory import make_tokenizer
from tests.server.api.pooling.classifiers import make_classifier, outputs
from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server

QUERY = "what is a hot swap?"
DOCUMENTS = ["a replacement while all runs", "a dish of potatoes", "changing adapters, and nobody waits", "b"]
SIGMOID = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}


@pytest.fixture(scope="module")
def cross(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
    return make_classifier(base, tmp_path_factory.mktemp("cross") / "cross", config, 1, beside=SIGMOID)


@pytest.fixture(scope="module")
def ranking(
    base: Path, packages: dict[str, Path], cross: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    adapters = [("cross", str(cross)), ("lora", str(packages["lora"]))]
    with live_server(base, tmp_path_factory.mktemp("ranking"), adapters=adapters) as live:
        yield live
        live.wait_idle()


def wanted_scores(base: Path, packages: dict[str, Path], cross: Path, model: str) -> torch.Tensor:
    tokenizer = make_tokenizer()
    if model == "cross":
        pairs = [tokenizer.encode(QUERY, text) for text in DOCUMENTS]
        return torch.cat([outputs(base, cross, 1, ids) for ids in pairs]).sigmoid()
    vectors = [oracle.hidden(base, packages.get(model), tokenizer.encode(t))[-1] for t in (QUERY, *DOCUMENTS)]
    return cosine_similarity(vectors[0][None], torch.stack(vectors[1:]))


@pytest.mark.parametrize("model", ["cross", "lora", BASE])
def test_scores_and_ranks(ranking: Live, base: Path, packages: dict[str, Path], cross: Path, model: str) -> None:
    want = wanted_scores(base, packages, cross, model)
    body = {"model": model, "text_1": QUERY, "text_2": DOCUMENTS}
    answer = ranking.post("/score", body).json()
    found = torch.tensor([entry["score"] for entry in answer["data"]])
    torch.testing.assert_close(found, want, rtol=0, atol=max(4 * LOGITS, HIDDEN))
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    both = ranking.post("/v1/score", {"model": model, "queries": [QUERY] * 4, "documents": DOCUMENTS}).json()
    assert [e["score"] for e in both["data"]] == pytest.approx([e["score"] for e in answer["data"]], abs=HIDDEN)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        ranked = ranking.post(path, {"model": model, "query": QUERY, "documents": DOCUMENTS, "top_n": 3}).json()
        order = [entry["index"] for entry in ranked["results"]]
        assert order == want.argsort(descending=True)[:3].tolist()
        assert [entry["document"] for entry in ranked["results"]] == [{"text": DOCUMENTS[i]} for i in order]
        scores = [entry["relevance_score"] for entry in ranked["results"]]
        assert scores == pytest.approx([answer["data"][i]["score"] for i in order], abs=HIDDEN)
    assert ranked["usage"]["total_tokens"] == answer["usage"]["total_tokens"] > 0


def test_documents_may_be_objects_are_cut_and_need_not_come_back(ranking: Live) -> None:
    body = {"model": "cross", "query": QUERY, "documents": [{"text": t} for t in DOCUMENTS], "return_documents": False}
    plain = ranking.post("/v1/rerank", body).json()
    assert all(set(entry) == {"index", "relevance_score"} for entry in plain["results"])
    cut = ranking.post("/v1/rerank", {**body, "max_tokens_per_doc": 4}).json()
    assert cut["usage"]["prompt_tokens"] == 4 * len(QUERY) + 3 * 4 + 1


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "compared"),
        ("/v1/score", {"text_1": [], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ["b", ""]}, "text_2"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [3]}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["x"]}, "rank_fields"),
        ("/v1/rerank", {"query": "a", "documents": ["b" * 3000]}, "maximum context length"),
    ],
)
def test_what_cannot_be_compared_is_refused(ranking: Live, path: str, body: dict[str, Any], word: str) -> None:
    error = error_of(ranking.post(path, {"model": "cross", **body}))
    assert word in f"{error['message']} {error['param']}"
