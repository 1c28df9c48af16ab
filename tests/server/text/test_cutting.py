"""Texts and pairs that are cut have the tokens that transformers' truncation leaves."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import processors

from server.text.cutting import cut_encoding
from server.text.tokenizer import TextProcessor
from tests.factory import make_tokenizer

FIRST, SECOND = "who goes there in the dark?", "nöbody"


def embedder() -> Any:
    """A tokenizer that puts tokens around texts and between two."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", 257), ("<|im_end|>", 258)],
    )
    return tokenizer


@pytest.mark.parametrize("keeps_end", [True, False])
@pytest.mark.parametrize("texts", [(FIRST,), (SECOND,), (FIRST, SECOND), (SECOND, FIRST), (FIRST, FIRST)])
@pytest.mark.parametrize("make", [make_tokenizer, embedder])
def test_what_stays_is_what_transformers_keeps(make: Any, texts: tuple[str, ...], keeps_end: bool) -> None:
    tokenizer, ours = make(), TextProcessor(make())
    tokenizer.truncation_side = "left" if keeps_end else "right"
    for keep in range(5, 64):
        want = tokenizer(*texts, truncation=True, max_length=keep, return_offsets_mapping=True)
        found = cut_encoding(ours._backend, texts, keep, keeps_end=keeps_end)
        assert found.ids == want.input_ids
        if len(texts) == 1:
            assert ours.char_spans(texts[0], found.ids) == want["offset_mapping"]


def test_nothing_is_put_around_where_it_does_not_fit() -> None:
    tokenizer = embedder()
    found = cut_encoding(tokenizer.backend_tokenizer, ["abc"], 2, keeps_end=False)
    assert found.ids == tokenizer("ab", add_special_tokens=False).input_ids
