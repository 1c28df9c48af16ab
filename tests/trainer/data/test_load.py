"""What is learned of a row: masks for chat, plain and multi-turn data, and what becomes of rows that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.factory import make_tokenizer
from tests.trainer.support import colour_rows, write_jsonl
from trainer.config.data import Columns, DataConfig
from trainer.data.examples import IGNORED, Example
from trainer.data.load import TrainingData, load_data
from trainer.errors import DataError

END = 258  # <|im_end|>
MESSAGES = Columns(messages="messages")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def load(folder: Path, tokenizer: Any, rows: list[Any], seed: int = 0, **config: Any) -> TrainingData:
    path = write_jsonl(folder / "data.jsonl", rows)
    return load_data(DataConfig(**{"path": str(path), "validation": 0, **config}), tokenizer, (END,), seed)


def text_of(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode(example.input_ids))


def learned(tokenizer: Any, example: Example) -> list[str]:
    """The stretches of text that ``example`` learns."""
    assert len(example.input_ids) == len(example.labels)
    stretches: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label == IGNORED:
            stretches.append([])
        else:
            assert label == token
            stretches[-1].append(token)
    return [tokenizer.decode(ids) for ids in stretches if ids]


def test_chat_rows_learn_the_answer_and_its_end_and_nothing_else(tmp_path: Path, tokenizer: Any) -> None:
    example = load(tmp_path, tokenizer, [{"prompt": "hi", "response": "yo"}], system_prompt="be").train[0]
    assert text_of(tokenizer, example) == (
        "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"
    )
    assert learned(tokenizer, example) == ["yo<|im_end|>"]


def test_the_prompt_is_what_a_server_renders_and_tokenises(tmp_path: Path, tokenizer: Any) -> None:
    data = load(tmp_path, tokenizer, [{"prompt": "hi", "response": "\nyo"}] * 2, validation=1)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert list(data.questions[0].input_ids) == rendered["input_ids"]
    assert list(data.train[0].input_ids[: len(rendered["input_ids"])]) == rendered["input_ids"]


def test_plain_rows_are_joined_as_they_are_and_get_an_end(tmp_path: Path, tokenizer: Any) -> None:
    example = load(tmp_path, tokenizer, [{"prompt": "2+2=", "response": "4"}], template="none").train[0]
    assert text_of(tokenizer, example) == "2+2=4<|im_end|>"
    assert learned(tokenizer, example) == ["4<|im_end|>"]


def test_conversations_learn_every_assistant_turn(tmp_path: Path, tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<|im_start|>assistant\nb"},  # a keyword search would be fooled
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "never answered"},
    ]
    example = load(tmp_path, tokenizer, [{"messages": messages}], columns=MESSAGES).train[0]
    assert learned(tokenizer, example) == ["<|im_start|>assistant\nb<|im_end|>", "d<|im_end|>"]
    assert text_of(tokenizer, example).endswith("assistant\nd<|im_end|>")


def test_a_template_that_rewrites_earlier_turns_leaves_the_last_one_to_learn(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    example = load(tmp_path, tokenizer, [{"messages": messages}], columns=MESSAGES).train[0]
    assert learned(tokenizer, example) == ["d<|im_end|>"]
    assert text_of(tokenizer, example) == (
        "[user]a<|im_end|>[assistant]<|im_end|>[user]c<|im_end|>[assistant]d<|im_end|>"
    )


def test_a_template_without_an_end_of_turn_gets_one(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    example = load(tmp_path, tokenizer, [{"prompt": "a", "response": "b"}]).train[0]
    assert learned(tokenizer, example) == ["b\n<|im_end|>"]


def test_a_base_without_a_template_is_told_what_to_do(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"set data\.template: none"):
        load(tmp_path, tokenizer, colour_rows())


def test_unusable_rows_are_counted_by_reason(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": " "}, {"prompt": "", "response": "b"}]
    data = load(tmp_path, tokenizer, [*rows, rows[1], {"prompt": "a" * 90, "response": "b"}], max_length=60)
    assert len(data.train) == 1
    assert data.dropped == {"empty response": 2, "empty prompt": 1, "longer than data.max_length 60": 1}


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "a"}]])
def test_conversations_without_an_answer_are_counted(tmp_path: Path, tokenizer: Any, messages: list[Any]) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    data = load(tmp_path, tokenizer, [{"messages": messages}, good], columns=MESSAGES)
    assert data.dropped == {"no assistant message after a first message": 1}


def test_long_rows_may_be_cut_at_either_end(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "0123456789", "response": "abcdef"}]
    plain: dict[str, Any] = {"template": "none", "max_length": 12}
    start = load(tmp_path, tokenizer, rows, too_long="cut_start", **plain).train[0]
    assert text_of(tokenizer, start) == "56789abcdef<|im_end|>"
    assert learned(tokenizer, start) == ["abcdef<|im_end|>"]
    end = load(tmp_path, tokenizer, rows, too_long="cut_end", **plain).train[0]
    assert (text_of(tokenizer, end), learned(tokenizer, end)) == ("0123456789ab", ["ab"])


def test_nothing_left_to_learn_is_an_error_that_says_why(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"nothing to learn from: 48 rows: longer than data\.max_length 20"):
        load(tmp_path, tokenizer, colour_rows(), max_length=20)
    with pytest.raises(DataError, match=r"48 rows: no token of the response within data\.max_length 20"):
        load(tmp_path, tokenizer, colour_rows(), max_length=20, too_long="cut_end")
    with pytest.raises(DataError, match="2 rows: empty response"):
        load(tmp_path, tokenizer, [{"prompt": "a", "response": ""}] * 2)


def test_the_split_depends_on_the_seed_only_and_loses_no_row(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"row {i}", "response": "x"} for i in range(40)]
    one, same, other = (load(tmp_path, tokenizer, rows, seed=seed, validation=0.25) for seed in (1, 1, 2))
    assert one == same
    assert (len(one.train), len(one.validation), len(one.questions)) == (30, 10, 10)
    assert {e.input_ids for e in one.train} | {e.input_ids for e in one.validation} == {
        e.input_ids for e in load(tmp_path, tokenizer, rows).train
    }
    assert one.validation != other.validation


def test_a_validation_file_is_read_like_the_training_data(tmp_path: Path, tokenizer: Any) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "a", "response": "b"}])
    data = load(tmp_path, tokenizer, colour_rows(6), validation=str(held))
    assert (len(data.train), len(data.validation)) == (6, 1)
    assert data.sha256 != load(tmp_path, tokenizer, colour_rows(6)).sha256


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="wants 6 of 6 usable rows"):
        load(tmp_path, tokenizer, colour_rows(6), validation=6)
