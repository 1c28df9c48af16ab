"""Questions over HTTP are the rows that training held back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bases.tool_text import template_tool
from tests.factory import make_tokenizer
from tests.trainer.support import write_jsonl
from trainer.config.data import DataConfig
from trainer.data.messages import Message, Question
from trainer.data.training_data import load_data, load_questions
from trainer.errors import DataError

END = 258
ROWS = [{"prompt": f"row {i % 40}", "response": "" if i % 9 == 0 else f"answer {i}", "id": i} for i in range(60)]


def config(folder: Path, rows: list[Any] = ROWS, **settings: Any) -> DataConfig:
    path = write_jsonl(folder / "data.jsonl", rows)
    return DataConfig(**{"path": str(path), "validation": 0.25, **settings})


@pytest.mark.parametrize(
    "settings",
    [{}, {"validation": 7}, {"max_rows": 30}, {"duplicates": "drop"}, {"template": "none"}, {"system_prompt": "kurz"}],
    ids=str,
)
def test_they_are_the_rows_that_training_holds_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    tokenizer, data_config = make_tokenizer(), config(tmp_path, **settings)
    for seed in (0, 3):
        held = load_data(data_config, tokenizer, (END,), seed).questions
        asked = load_questions(data_config, seed, "validation")
        assert [question.reference for question in asked] == [question.response for question in held]
        assert [question.row["response"] for question in asked] == [question.response for question in held]
        for question, tokens in zip(asked, held, strict=True):
            sent = question.prompt
            if question.messages is not None:
                plain = [{"role": m.role, "content": m.content} for m in question.messages]
                sent = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
            assert tokenizer(sent).input_ids == list(tokens.input_ids)
    assert load_questions(data_config, 0, "validation") != load_questions(data_config, 3, "validation")


def test_a_validation_and_a_test_file_are_asked_whole(tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "问", "response": "答", "gold": ["x"]}])
    expected = [Question((Message("user", "问"),), None, "答", {"prompt": "问", "response": "答", "gold": ["x"]})]
    assert load_questions(config(tmp_path, validation=str(held)), 0, "validation") == expected
    assert load_questions(config(tmp_path, test=str(held)), 0, "test") == expected


def test_the_last_answer_of_a_conversation_is_asked_for(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (question,) = load_questions(config(tmp_path, [row] * 2, validation=1), 0, "validation")
    assert question.messages == tuple(Message(role, content) for role, content in turns[:3])
    assert question.reference == "d"


@pytest.mark.parametrize("form", ["text", "template"])
def test_tools_and_calls_are_sent_as_clients_send_them(tmp_path: Path, form: str) -> None:
    call = '{"name": "f", "arguments": {"x": 1}}'
    turns = [("human", "a"), ("function_call", call), ("observation", "b"), ("human", "c"), ("function_call", call)]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns], "tools": [{"name": "f"}]}
    (question,) = load_questions(config(tmp_path, [row] * 2, validation=1, tools=form), 0, "validation")
    assert question.messages is not None
    assert [message.calls for message in question.messages] == [(), (call,), (), ()]
    assert (question.reference, question.tools) == (call, (template_tool({"name": "f"}),))


def test_plain_text_is_a_reference_without_a_prompt(tmp_path: Path) -> None:
    (question,) = load_questions(config(tmp_path, [{"text": "全文"}] * 2, validation=1), 0, "validation")
    assert (question.messages, question.prompt, question.reference) == (None, "", "全文")


def test_a_recipe_brings_its_test_rows_and_its_system_prompt(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": f"{name}?", "answer": "1 + 1\n#### 2"}])
    (question,) = load_questions(DataConfig(path=str(tmp_path), recipe="gsm8k"), 0, "test")
    assert question.messages is not None
    assert "test?" in question.messages[-1].content
    assert question.row["answer"] == "2"


def test_without_rows_to_ask_there_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no validation rows \(data.validation is 0\)"):
        load_questions(config(tmp_path, validation=0), 0, "validation")
    with pytest.raises(DataError, match=r"there are no test rows; name them with data.test"):
        load_questions(config(tmp_path), 0, "test")
