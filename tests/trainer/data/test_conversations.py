"""Rows to conversations: shapes found by their columns, mapped columns, and what is wrong said with its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.config.data import Columns, DataConfig
from trainer.data.conversations import DroppedRow, ParsedRow, answers_of, find_layout, read_row
from trainer.data.messages import Message
from trainer.data.rows import RawRow
from trainer.errors import DataError

CALL = '{"name": "weather", "arguments": {"city": "上海"}}'
TOOLS = [{"name": "weather", "parameters": {"city": "string"}}]


def reading(values: dict[str, Any], **config: Any) -> ParsedRow:
    row, settings = RawRow("rows.jsonl line 7", values), DataConfig(path="rows.jsonl", **config)
    return read_row(row, find_layout(settings, row), settings)


def conversation(values: dict[str, Any], **config: Any) -> tuple[Message, ...]:
    return reading(values, **config).conversation


def said(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


USER, ANSWER = Message("user", "q"), Message("assistant", "a")


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        (
            {"prompt": "q", "response": "a", "id": 3},
            "prompt_response (prompt, response)",
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"prompt": "q", "completion": "a"},
            "prompt_completion (prompt, completion)",
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"instruction": "译", "input": "你好", "output": "hello", "text": "译你好hello"},
            "alpaca (instruction, output, input)",
            [("user", "译\n你好"), ("assistant", "hello")],
        ),
        (
            {"instruction": "q", "input": "", "output": "a"},
            "alpaca (instruction, output, input)",
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"instruction": "q", "output": "a", "system": "s", "history": [["q0", "a0"], ["q1", "a1"]]},
            "alpaca (instruction, output, system, history)",
            [
                ("system", "s"),
                ("user", "q0"),
                ("assistant", "a0"),
                ("user", "q1"),
                ("assistant", "a1"),
                ("user", "q"),
                ("assistant", "a"),
            ],
        ),
        (
            {"prompt": "q", "response": "a", "history": '[["问", "答"]]', "system": None},
            "prompt_response (prompt, response, system, history)",
            [("user", "问"), ("assistant", "答"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt (conversations, system)",
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "x"},
            "messages (messages)",
            [("user", "q"), ("assistant", "a")],
        ),
        ({"text": "全部学习"}, "text (text)", [("text", "全部学习")]),
    ],
)
def test_the_shape_is_found_by_the_columns(values: dict[str, Any], shape: str, expected: list[Any]) -> None:
    config = DataConfig(path="rows.jsonl")
    assert str(find_layout(config, RawRow("a", values))) == shape
    assert said(conversation(values)) == expected


def test_columns_are_mapped_and_a_system_prompt_comes_first() -> None:
    columns = Columns(prompt="question", response="answer", system="rules")
    row = {"question": "q", "answer": "a", "rules": "s"}
    assert [m.role for m in conversation(row, columns=columns)] == ["system", "user", "assistant"]
    assert [m.content for m in conversation({**row, "rules": " "}, columns=columns)] == ["q", "a"]
    assert conversation({"prompt": "q", "response": "a"}, system_prompt="s")[0] == Message("system", "s")


def test_the_shape_may_be_said_and_half_mapped() -> None:
    row = {"prompt": "p", "response": "r", "text": "t", "summary": "s"}
    assert said(conversation(row, shape="text")) == [("text", "t")]
    assert said(conversation(row, columns=Columns(response="summary"))) == [("user", "p"), ("assistant", "s")]
    assert said(conversation(row, columns=Columns(text="summary"))) == [("text", "s")]


def test_a_text_with_an_answer_beside_it_is_not_learned_alone() -> None:
    row = {"text": "q", "answer": "a"}
    with pytest.raises(DataError, match=r"data\.columns\.prompt=text data\.columns\.response=answer, for plain text"):
        conversation(row)
    assert said(conversation(row, columns=Columns(prompt="text", response="answer"))) == [
        ("user", "q"),
        ("assistant", "a"),
    ]
    assert said(conversation(row, shape="text")) == said(conversation(row, columns=Columns(text="text")))


def test_a_prefix_goes_before_the_prompt_only() -> None:
    row = {"prompt": "q", "response": "a", "history": [["q0", "a0"]]}
    assert [m.content for m in conversation(row, prompt_prefix="译：")] == ["q0", "a0", "译：q", "a"]


def test_messages_stand_for_themselves_and_keep_their_own_system_prompt() -> None:
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "q", "name": "x"}]
    whole = [*own, {"role": "assistant", "content": "a"}]
    expected = (Message("system", "mine"), USER, ANSWER)
    assert conversation({"messages": whole}, system_prompt="s") == expected
    assert conversation({"messages": json.dumps(whole)}, system_prompt="s") == expected


def test_functions_and_calls_are_written_as_text_that_a_server_can_be_sent() -> None:
    turns = [("human", "天气？"), ("function_call", CALL), ("observation", "晴"), ("gpt", "晴天。")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": json.dumps(TOOLS)}
    system, *rest = said(conversation(row, system_prompt="简短"))
    assert system[0] == "system"
    assert system[1].startswith("简短\n\nYou can call these functions:\n" + json.dumps(TOOLS[0]))
    assert rest == [("user", "天气？"), ("assistant", CALL), ("tool", "晴"), ("assistant", "晴天。")]


def test_functions_and_calls_may_be_left_to_the_template() -> None:
    call = {"id": "1", "type": "function", "function": json.loads(CALL) | {"arguments": '{"city": "上海"}'}}
    messages = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "晴"},
        {"role": "assistant", "content": "晴天。"},
    ]
    found = reading({"messages": messages, "tools": TOOLS}, tools="template")
    assert [tool["function"] for tool in found.tools] == TOOLS
    assert [json.loads(one) for one in found.conversation[1].calls] == [json.loads(CALL)]


@pytest.mark.parametrize(
    ("learn", "marks", "expected"),
    [
        ("all_answers", {}, [1, 3]),
        ("last_answer", {}, [3]),
        ("all_answers", {1: {"weight": 0}}, [3]),
        ("all_answers", {3: {"train": False}}, [1]),
        ("all_answers", {1: {"weight": 1}, 3: {"train": True}}, [1, 3]),
    ],
)
def test_which_answers_are_learned(learn: Any, marks: dict[int, Any], expected: list[int]) -> None:
    roles = ["user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": role, **marks.get(i, {})} for i, role in enumerate(roles)]
    config = DataConfig(path="a", learn=learn)
    assert answers_of(conversation({"messages": messages}, learn=learn), config) == expected


@pytest.mark.parametrize(
    ("values", "config", "words"),
    [
        ({"prompt": 5, "response": "a"}, {}, "line 7: 'prompt' must be text, not a number"),
        ({"prompt": "q", "response": {"x": 1}}, {}, "line 7: 'response' must be text, not an object"),
        (
            {"prompt": "q", "response": "a", "history": "before"},
            {},
            "'history' must be a list of .user, assistant. pairs, not str",
        ),
        ({"prompt": "q", "response": "a", "history": [["x"]]}, {}, "'history': turn 0 must be a pair of texts"),
        ({"messages": [], "tools": 3}, {}, "'tools' must be a list of functions, not a number"),
        (
            {"question": "q", "answer": "a"},
            {},
            "no known shape .found: question, answer; known: messages; .*perhaps data.columns.prompt=question data",
        ),
        ({"a": "q", "b": "a"}, {}, "no known shape .*; name yours in data.columns"),
        (
            {"promt": "q", "response": "a"},
            {"shape": "prompt_response"},
            "no column 'prompt' .found: promt, response.; did you mean 'promt'. name yours",
        ),
        (
            {"question": "q", "response": "a"},
            {"columns": Columns(prompt="Question")},
            "no column 'Question' .*did you mean 'question'",
        ),
        ({"prompt": "q", "response": "a"}, {"columns": Columns(system="rules")}, "has no column 'rules'"),
        (
            {"prompt": "q"},
            {"columns": Columns(prompt="prompt", messages="m")},
            "data.columns: prompt and messages do not go together",
        ),
        (
            {"text": "q"},
            {"shape": "text", "columns": Columns(prompt="text")},
            "prompt do not go together in the shape text .it has text.",
        ),
    ],
)
def test_wrong_columns_and_cells_are_refused(values: dict[str, Any], config: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        conversation(values, **config)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "must be a list of messages, not str"),
        (["hello"], "message 0 must be an object with role and content"),
        ([{"role": "user"}], "content of message 0 must be text, not null"),
        ([{"role": 1, "content": "a"}], "role of message 0 must be text, not a number"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content of message 0 must be text, not a list"),
        ([{"from": "human", "text": "a"}], "value of message 0 must be text, not null"),
        ([{"role": "assistant", "content": "a", "weight": 0.5}], "message 0: weight must be 0 or 1, not 0.5"),
        ([{"role": "assistant", "content": "a", "train": 0}], "message 0: train must be true or false, not 0"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "each of tool_calls must be an object"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        conversation({"messages": messages})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "q", "response": None}, "'response' is null"),
        ({"messages": None}, "'messages' is null"),
        ({"prompt": " ", "response": "a"}, "empty prompt"),
        ({"prompt": "q", "response": "\u3000"}, "empty response"),
        ({"text": "\n"}, "empty text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no assistant message after a first message"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
            "every answer is excluded by its weight or train",
        ),
    ],
)
def test_rows_that_teach_nothing_are_dropped_with_the_reason(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(DroppedRow, match=reason):
        conversation(values)


def test_a_row_of_another_shape_is_said_so() -> None:
    config = DataConfig(path="a")
    layout = find_layout(config, RawRow("a line 1", {"prompt": "q", "response": "a"}))
    with pytest.raises(
        DataError,
        match=r"line 2 has no column 'prompt' .*it has the shape sharegpt, and rows before it prompt_response",
    ):
        read_row(RawRow("a line 2", {"conversations": []}), layout, config)


def chat(*answers: str | None) -> dict[str, Any]:
    turns = [({"role": "user", "content": "q"}, {"role": "assistant", "content": answer}) for answer in answers]
    return {"messages": [message for turn in turns for message in turn]}


@pytest.mark.parametrize(
    ("values", "learned", "length", "empty"),
    [
        (chat("a", "b"), [1, 3], 4, 0),
        (chat("", "b"), [3], 4, 1),
        (chat("a", " \n", None, "b"), [1, 7], 8, 2),
        (chat("a", "", ""), [1], 2, 2),
        ({"prompt": "q", "response": "a", "history": [["q0", " "], ["q1", "a1"]]}, [3, 5], 6, 1),
        ({"conversations": [{"from": who, "value": text} for who, text in
                            [("human", "q"), ("gpt", ""), ("human", "q"), ("function_call", CALL)]]}, [3], 4, 1),
    ],
)  # fmt: skip
def test_empty_answers_are_read_not_learned_and_counted(
    values: dict[str, Any], learned: list[int], length: int, empty: int
) -> None:
    for learn in ("all_answers", "everything"):
        found = reading(values, learn=learn)
        assert answers_of(found.conversation, DataConfig(path="a", learn=learn)) == learned
        assert (len(found.conversation), found.empty_answers) == (length, empty)


def test_rows_whose_answers_are_all_empty_are_dropped() -> None:
    for values in (chat("", None), {"prompt": "q", "response": "", "history": [["q0", "a0"]]}):
        with pytest.raises(DroppedRow, match="empty response"):
            reading(values)


def test_roles_are_mapped_in_every_shape() -> None:
    roles = {"student": "user", "teacher": "assistant"}
    messages = [{"role": "student", "content": "q"}, {"role": "teacher", "content": "a"}]
    sharegpt = [{"from": "student", "value": "q"}, {"from": "teacher", "value": "a"}]
    for values in ({"messages": messages}, {"conversations": sharegpt}):
        assert conversation(values, roles=roles) == (USER, ANSWER)
    assert conversation({"prompt": "q", "response": "a", "history": messages}, roles=roles)[:2] == (USER, ANSWER)
