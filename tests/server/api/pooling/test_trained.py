"""What our trainer makes of tasks that read, served to the numbers that transformers and peft make of it."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.bounds import LOGITS
from tests.factory import make_tokenizer
from tests.server.live import live_server
from tests.trainer.every_method import METHODS
from tests.trainer.pooling.support import (
    class_rows,
    logits_by_peft,
    tag_rows,
    token_logits_by_peft,
    vectors_by_peft,
)
from tests.trainer.support import WORDS, make_config
from trainer.run import train

CLASSIFIERS = ("lora", "freeze", "prefix")  # of each way to be saved
TEXTS = ["very red", "a longer text that names no colour"]
STEPS = "max_steps=2"


def test_classifiers_and_embeddings(tiny_base: Path, tmp_path: Path) -> None:
    packages = {}
    for method in CLASSIFIERS:
        config = make_config(
            tmp_path / method, tiny_base, "task=classification", *METHODS[method], STEPS, rows=class_rows(16)
        )
        packages[method] = train(config).package
    rows = [{"anchor": f"{word} {i}", "positive": f"{i} {word}"} for i, word in enumerate(WORDS * 3)]
    options = ["task=embedding", "task.pooling=mean", *METHODS["lora"], STEPS]
    packages["vectors"] = train(make_config(tmp_path / "vectors", tiny_base, *options, rows=rows)).package
    options = ["task=token-classification", *METHODS["lora"], STEPS]
    packages["tags"] = train(make_config(tmp_path / "tags", tiny_base, *options, rows=tag_rows(16))).package
    ids = [tuple(make_tokenizer().encode(text)) for text in TEXTS]
    with live_server(tiny_base, tmp_path / "data", adapters=[(n, str(p)) for n, p in packages.items()]) as live:
        for name in CLASSIFIERS:
            found = live.post("/v1/classify", {"model": name, "input": TEXTS}).json()["data"]
            package = packages[name]
            assert package is not None
            want = logits_by_peft(tiny_base, package, ids).softmax(-1)
            torch.testing.assert_close(torch.tensor([one["probs"] for one in found]), want, rtol=0, atol=LOGITS)
            assert [one["label"] for one in found] == [sorted(WORDS)[i] for i in want.argmax(-1)]
        package = packages["tags"]
        assert package is not None
        tagged = live.post("/v1/classify", {"model": "tags", "input": TEXTS}).json()["data"]
        for one, logits in zip(tagged, token_logits_by_peft(tiny_base, package, ids), strict=True):
            found = torch.tensor([token["probs"] for token in one["tokens"]])
            torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=LOGITS)
        package = packages["vectors"]
        assert package is not None
        vectors = live.post("/v1/embeddings", {"model": "vectors", "input": TEXTS}).json()["data"]
        want = vectors_by_peft(tiny_base, package, ids, "mean")
        torch.testing.assert_close(torch.tensor([one["embedding"] for one in vectors]), want, rtol=0, atol=LOGITS)
