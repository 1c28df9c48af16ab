"""Texts to token ids, and batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.trainer.support import make_config
from trainer.data.conversations import DroppedRow
from trainer.data.messages import Message
from trainer.pooling.examples import PooledCollator, PooledExample, PooledExamples, TextEncoder


def encoder(tiny_base: Path, folder: Path, *overrides: str) -> tuple[TextEncoder, Any]:
    config = make_config(folder, tiny_base, "task=classification", *overrides, rows=[{"text": "a", "label": "b"}])
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base)
    return TextEncoder(config.data, tokenizer), tokenizer


def test_texts_are_tokenised_as_a_server_does(tiny_base: Path, tmp_path: Path) -> None:
    texts, tokenizer = encoder(tiny_base, tmp_path)
    assert list(texts.text("red and blue")) == tokenizer("red and blue").input_ids
    assert list(texts.pair("red", "blue")) == tokenizer("red", "blue").input_ids
    chat = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "no"}]
    wanted = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.decode(texts.text((Message("user", "red?"), Message("assistant", "no")))) == wanted


@pytest.mark.parametrize(("too_long", "kept"), [("cut_end", slice(0, 8)), ("cut_start", slice(-8, None))])
def test_long_texts_are_cut(tiny_base: Path, tmp_path: Path, too_long: str, kept: slice) -> None:
    texts, tokenizer = encoder(tiny_base, tmp_path, "max_length=8", f"too_long={too_long}")
    text = "abcdefghij klmnop"
    assert list(texts.text(text)) == tokenizer(text).input_ids[kept]


def test_long_texts_are_dropped_else(tiny_base: Path, tmp_path: Path) -> None:
    texts, _ = encoder(tiny_base, tmp_path, "max_length=8")
    with pytest.raises(DroppedRow, match=r"longer than data\.max_length 8"):
        texts.text("abcdefghij klmnop")


def test_examples_are_read_back_from_disk() -> None:
    rows = [PooledExample(((1, 2), (3,)), (), 0.5), PooledExample(((4,),), (1, 2)), PooledExample(((5,), (6,)))]
    kept = PooledExamples()
    for row in rows:
        kept.append(row)
    assert list(kept) == rows
    assert kept.lengths == [3, 1, 2]


def test_a_batch_of_texts_that_belong_together() -> None:
    rows = [PooledExample(((1, 2), (9,), (7, 7))), PooledExample(((3,), (9,))), PooledExample(((4,), (8,)))]
    batch = PooledCollator(0)(rows)
    assert batch["input_ids"].tolist() == [[1, 2], [3, 0], [4, 0], [9, 0], [9, 0], [8, 0], [7, 7]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 1, 1, 1, 1, 1, 2]
    assert batch["labels"].tolist() == [0, 1, 2]
    keys = batch["keys"].tolist()
    assert (len(set(keys)), keys[0]) == (3, keys[1])  # of texts that are equal
    blank = PooledExample(((0,),), is_blank=True)
    assert PooledCollator(0)([*rows, blank])["input_ids"].tolist() == batch["input_ids"].tolist()
    alone = PooledCollator(0)([blank, blank])
    assert (len(alone["input_ids"]), len(alone["labels"]), len(alone["keys"])) == (2, 0, 0)


def test_targets_by_what_is_learned() -> None:
    one, several = [PooledExample(((1,),), (2,))], [PooledExample(((1,),), (0, 2)), PooledExample(((1,),))]
    assert PooledCollator(0)(one)["labels"].tolist() == [2]
    assert PooledCollator(0, 3)(several)["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    numbers = PooledCollator(0)([PooledExample(((1,),), (), 0.25)])["labels"]
    assert numbers.tolist() == [0.25]
    assert numbers.dtype == torch.float32
