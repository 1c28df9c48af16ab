from __future__ import annotations

import re
from pathlib import Path

from tests.factory import make_tokenizer
from tests.trainer.support import make_config
from trainer.base_model import load_vocabulary
from trainer.data.encoding import IGNORED, Example
from trainer.data.preview import marked, preview
from trainer.data.training_data import split_conversations

TOKENIZER = make_tokenizer()


def example(*parts: tuple[str, bool]) -> Example:
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in parts:
        part = TOKENIZER.encode(text, add_special_tokens=False)
        ids += part
        labels += part if learned else [IGNORED] * len(part)
    return Example(tuple(ids), tuple(labels))


CHAT = example(("<|im_start|>user\n你好<|im_end|>\n", False), ("Hé!<|im_end|>", True))


def test_learned_text_stands_between_marks() -> None:
    assert marked(CHAT, TOKENIZER, colour=False) == "<|im_start|>user\n你好<|im_end|>\n«Hé!<|im_end|>»"


def test_colours_mark_the_same_text() -> None:
    shown = marked(CHAT, TOKENIZER, colour=True)
    assert "\x1b[32mHé!\x1b[1m<|im_end|>\x1b[0m\x1b[32m\x1b[0m" in shown
    assert shown.startswith("\x1b[2m\x1b[1m<|im_start|>\x1b[0m\x1b[2muser")
    assert re.sub(r"\x1b\[\d+m", "", shown) == TOKENIZER.decode(CHAT.input_ids)


def test_ids_stand_behind_their_tokens() -> None:
    assert marked(example(("a<|im_end|>", True)), TOKENIZER, colour=False, ids=True) == "«a[64]<|im_end|>[258]»"


def test_data_cannot_change_the_terminal() -> None:
    shown = marked(example(("a\x1b[31mred\x07\tb\n", False)), TOKENIZER, colour=False)
    assert shown == "a\\x1b[31mred\\x07\tb\n"


def test_rows_are_those_that_train_first_and_dropped_ones_say_why(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": "r"}, {"prompt": "p" * 90, "response": "r"}, {"prompt": "q", "response": "s"}]
    config = make_config(tmp_path, tiny_base, "max_length=60", "validation=0", "eval_steps=null", rows=rows)
    tokenizer, end_ids = load_vocabulary(config)
    shown = list(preview(split_conversations(config.data, 0), tokenizer, end_ids, 3))
    assert [one.dropped for one in shown] == [None, "longer than data.max_length 60", None]
    assert shown[1].where == f"{tmp_path / 'data.jsonl'} line 2"
    first = marked(shown[0].examples[0], tokenizer, colour=False)
    assert first == "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n«r<|im_end|>»"
    assert len(list(preview(split_conversations(config.data, 0), tokenizer, end_ids, 1))) == 1
