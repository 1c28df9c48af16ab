"""Entities of the classes of tokens: what transformers' own pipeline makes of the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, TokenClassificationPipeline

from server.api.pooling.entities import Strategy, find_entities
from server.text.tokenizer import TextProcessor
from tests.factory import make_tokenizer
from tests.server.api.pooling.classifiers import make_classifier, plain_classifier
from tests.server.api.support import error_of
from tests.server.live import Live, live_server

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")  # the pipeline says so
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "X-Y-Z"]
NAMES = {str(i): name for i, name in enumerate(LABELS)}
TEXTS = [
    "Grace Hopper went to New-York, then to Genève: ünïcode 12!",
    " two  spaces\nand a line",
    "x",
    "one <|im_end|> two",
    "☃ Zürich ☃",
]
STRATEGIES: list[Strategy] = ["simple", "first", "average", "max"]
SHARE = 1e-6  # float32 means of at most some ten probabilities


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind: pieces are marked, and special tokens stand around a text."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", *map(chr, range(33, 127)), *(f"##{chr(i)}" for i in range(33, 127))]
    pieces += ["to", "##race", "new", "##opper", "and", "##ork"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def sentence_piece() -> PreTrainedTokenizerFast:
    """Llama's older kind: a word begins with a mark, and some characters are unknown."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((chr(i), -3.0) for i in range(33, 127)), ("▁to", -1.0), ("rk", -1.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("make", [make_tokenizer, word_piece, sentence_piece])
def test_entities_are_those_of_the_pipeline(make: Any) -> None:
    tokenizer = make()
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=6
    )
    config.id2label = dict(enumerate(LABELS))
    pipeline = TokenClassificationPipeline(model=BertForTokenClassification(config), tokenizer=tokenizer)
    text = TextProcessor(make())
    random, seen = np.random.default_rng(0), 0
    for given in TEXTS * 4:
        (inputs,) = pipeline.preprocess(given, is_split_into_words=False)
        ids = inputs.pop("input_ids")
        logits = torch.from_numpy(random.normal(size=(1, ids.shape[1], 6), scale=2).astype(np.float32))
        pieces = text.word_pieces(given, ids[0].tolist())
        assert pieces is not None
        for strategy in STRATEGIES:
            for ignored in (["O"], [], ["PER", "Y-Z"]):
                want = pipeline.postprocess(
                    [{"logits": logits, "input_ids": ids, **inputs}],
                    aggregation_strategy=pipeline._sanitize_parameters(aggregation_strategy=strategy)[2][
                        "aggregation_strategy"
                    ],
                    ignore_labels=ignored,
                )
                shares = logits[0].softmax(-1).numpy()
                found = find_entities(
                    pieces, shares, strategy, label=LABELS.__getitem__, join=text.joined, ignored=ignored
                )
                assert list(found) == [{**one, "score": pytest.approx(one["score"], abs=SHARE)} for one in want]
                seen += len(want)
    assert seen > 100


@pytest.fixture(scope="module")
def tagger(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="TOKEN_CLS")
    beside = {"id2label": NAMES, "problem_type": "multi_label_classification"}
    return make_classifier(base, tmp_path_factory.mktemp("tagger") / "a", lora, len(LABELS), beside=beside)


@pytest.fixture(scope="module")
def tags(base: Path, tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("tags"), adapters=[("tagger", str(tagger))]) as live:
        yield live


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_server_gives_what_transformers_and_peft_give(tags: Live, base: Path, tagger: Path, strategy: str) -> None:
    model = plain_classifier(base, tagger, len(LABELS)).base_model.model
    model.config.id2label = dict(enumerate(LABELS))
    pipeline = TokenClassificationPipeline(
        model=model, tokenizer=make_tokenizer(), aggregation_strategy=strategy, ignore_labels=[]
    )
    body = {"model": "tagger", "input": TEXTS, "aggregation_strategy": strategy, "ignore_labels": []}
    answer = tags.post("/v1/classify", body).json()
    for want, entry in zip(pipeline(TEXTS), answer["data"], strict=True):
        assert entry["entities"] == [{**one, "score": pytest.approx(one["score"], abs=1e-4)} for one in want]
        assert set(entry) == {"index", "entities", "num_classes"}
    short = tags.post("/v1/classify", {**body, "input": TEXTS[0], "truncate_prompt_tokens": 9}).json()
    assert short["data"][0]["entities"][-1]["end"] == len(TEXTS[0])
    assert (
        min(one["start"] for one in short["data"][0]["entities"]) == len(TEXTS[0]) - 9
    )  # the second byte of ï, and what follows it


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": [1, 2], "aggregation_strategy": "simple"}, "goes with texts"),
        ({"messages": [{"role": "user", "content": "a"}], "aggregation_strategy": "max"}, "goes with texts"),
        ({"input": "a", "aggregation_strategy": "simple", "use_activation": False}, "weighs probabilities"),
        ({"input": "a", "aggregation_strategy": "none", "ignore_labels": ["O"]}, "goes with `aggregation_strategy`"),
        ({"input": "a", "aggregation_strategy": "best"}, "aggregation_strategy"),
    ],
)
def test_what_makes_no_entities(tags: Live, body: dict[str, Any], words: str) -> None:
    assert words in error_of(tags.post("/v1/classify", {"model": "tagger", **body}))["message"]
