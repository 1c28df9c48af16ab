"""What becomes of rows that are too long: by part, counted, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.factory import make_tokenizer
from tests.trainer.data.test_training_data import END, learned, load, text_of
from trainer.data.training_data import TrainingData
from trainer.errors import DataError

HEAD = "<|im_start|>user\n"  # one token and five letters of one token each
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
FIXED = 6 + 13  # tokens that the template writes around one prompt


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


def texts(tokenizer: Any, data: TrainingData) -> list[str]:
    return [text_of(tokenizer, example) for example in data.train]


def test_a_long_prompt_loses_its_end_and_keeps_what_the_template_writes(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "0123456789", "response": "a"}, {"prompt": "01", "response": "b"}]
    data = load(tmp_path, tokenizer, rows, max_prompt_length=FIXED + 4)
    assert texts(tokenizer, data) == [f"{HEAD}0123{TAIL}a<|im_end|>", f"{HEAD}01{TAIL}b<|im_end|>"]
    assert data.cut == {"max_prompt_length": 1}
    assert "cut: 1 row at data.max_prompt_length" in data.notes
    assert any(
        note.startswith(f"prompts above {FIXED + 4} tokens lose old turns, then their end;") for note in data.notes
    )


def test_chinese_is_never_cut_within_a_character(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "你好世界", "response": "a"}]  # three tokens a character
    for room, kept in ((12, "你好世界"), (11, "你好世"), (9, "你好世"), (8, "你好"), (3, "你")):
        data = load(tmp_path, tokenizer, rows, max_prompt_length=FIXED + room)
        assert texts(tokenizer, data) == [f"{HEAD}{kept}{TAIL}a<|im_end|>"]
    with pytest.raises(DataError, match=r"nothing of the prompt's text fits into data\.max_prompt_length 21"):
        load(tmp_path, tokenizer, rows, max_prompt_length=FIXED + 2)


def test_old_turns_go_before_the_prompt_itself_is_cut(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "q2", "response": "a2", "history": [["q0", "a0"], ["q1", "a1"]], "system": "s"}
    whole = load(tmp_path, tokenizer, [row])
    assert [text.count("user") for text in texts(tokenizer, whole)] == [3]
    prompt = len(tokenizer(texts(tokenizer, whole)[0].rsplit("a2", 1)[0]).input_ids)
    one_less = load(tmp_path, tokenizer, [row], max_prompt_length=prompt - 1)
    assert texts(tokenizer, one_less) == [
        f"<|im_start|>system\ns<|im_end|>\n{HEAD}q1{TAIL}a1<|im_end|>\n{HEAD}q2{TAIL}a2<|im_end|>"
    ]
    assert learned(tokenizer, one_less.train[0]) == ["a1<|im_end|>", "a2<|im_end|>"]
    none = load(tmp_path, tokenizer, [row], max_prompt_length=45)
    assert texts(tokenizer, none) == [f"<|im_start|>system\ns<|im_end|>\n{HEAD}q2{TAIL}a2<|im_end|>"]


def test_a_cut_response_does_not_learn_to_end(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "q", "response": "0123456789"}, {"prompt": "q", "response": "0123"}]
    data = load(tmp_path, tokenizer, rows, max_response_length=5)
    assert texts(tokenizer, data) == [f"{HEAD}q{TAIL}01234", f"{HEAD}q{TAIL}0123<|im_end|>"]
    assert [learned(tokenizer, example) for example in data.train] == [["01234"], ["0123<|im_end|>"]]
    assert data.cut == {"max_response_length": 1}


def test_a_cut_answer_within_a_conversation_keeps_the_end_of_its_turn_unlearned(tmp_path: Path, tokenizer: Any) -> None:
    turns = [("user", "q"), ("assistant", "0123456789"), ("user", "q"), ("assistant", "ab")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = load(tmp_path, tokenizer, [row], max_response_length=4)
    assert texts(tokenizer, data) == [f"{HEAD}q{TAIL}0123<|im_end|>\n{HEAD}q{TAIL}ab<|im_end|>"]
    assert learned(tokenizer, data.train[0]) == ["0123", "ab<|im_end|>"]


def test_both_limits_hold_without_a_template(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "0123456789AB", "response": "abcdef"}]
    data = load(tmp_path, tokenizer, rows, template="none", max_prompt_length=8, max_response_length=3)
    assert texts(tokenizer, data) == ["01234567abc"]
    assert data.cut == {"max_prompt_length": 1, "max_response_length": 1}


def test_questions_are_cut_as_their_rows_are(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "0123456789", "response": "a"}] * 3
    data = load(tmp_path, tokenizer, rows, max_prompt_length=FIXED + 4, validation=1)
    assert tokenizer.decode(data.questions[0].input_ids) == f"{HEAD}0123{TAIL}"


def test_long_texts_may_be_split_and_lose_nothing(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "0123456789abcdefghij"}, {"text": "短"}]
    data = load(tmp_path, tokenizer, rows, max_length=8, too_long="split")
    assert texts(tokenizer, data) == ["01234567", "89abcdef", "ghij<|im_end|>", "短<|im_end|>"]
    assert learned(tokenizer, data.train[0]) == ["1234567"]
    assert not data.cut
    with pytest.raises(DataError, match=r"data\.too_long: split is for the shape text; prompt_response rows"):
        load(tmp_path, tokenizer, [{"prompt": "0123456789", "response": "a"}], max_length=8, too_long="split")


def test_rows_cut_at_max_length_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "0123456789", "response": "abcdef"}, {"prompt": "0", "response": "a"}]
    data = load(tmp_path, tokenizer, rows, template="none", max_length=12, too_long="cut_start")
    assert data.cut == {"max_length": 1}
    assert data.train[0].input_ids[-1] == END
    assert "rows above 12 tokens are cut at the start" in data.notes
