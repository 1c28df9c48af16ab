"""Rows of preference data to prompts and answers, and what is wrong with them. Every shape: test_preference_data.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bases.tool_text import template_tool
from trainer.config.data import Columns, DataConfig
from trainer.config.preference import PreferenceColumns
from trainer.data.conversations import DroppedRow
from trainer.data.messages import Message
from trainer.data.rows import RawRow
from trainer.errors import DataError
from trainer.preference.comparisons import ComparisonReader

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}
READER = ComparisonReader(DataConfig(path="x"), PreferenceColumns())
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def reader(**data: Any) -> ComparisonReader:
    return ComparisonReader(DataConfig(path="x", **data), PreferenceColumns())


def row(**values: Any) -> RawRow:
    return RawRow("data.jsonl line 1", values)


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "pair", r"line 1 has no column 'rejected' \(found: prompt, chosen\)"),
        ({"chosen": "yes", "rejected": "no"}, "pair", "line 1 has no prompt"),
        ({"prompt": "hi", "chosen": 3, "rejected": "no"}, "pair", "'chosen' must be text, a message or a list"),
        ({"prompt": "hi", "chosen": [USER], "rejected": "no"}, "pair", "must end with a message of the assistant"),
        ({"prompt": "hi", "completion": "yes", "label": "maybe"}, "judged", "must be true or false, not 'maybe'"),
        ({"prompt": "hi", "label": True}, "judged", "has no answer"),
        ({"prompt": "hi", "completion": "yes"}, "judged", "has no column 'label'"),
        ({"messages": [{"who": "x"}], "label": True}, "judged", "role of message 0 must be text, not null"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(row: Any, kind: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        getattr(READER, kind)(RawRow("data.jsonl line 1", row))


def test_a_pair_has_a_prompt_and_two_answers() -> None:
    pair = READER.pair(row(prompt="hi", chosen="yes", rejected=[{"role": "assistant", "content": "no"}]))
    assert pair.prompt == (Message("user", "hi"),)
    assert (pair.chosen, pair.rejected) == (Message("assistant", "yes"), Message("assistant", "no"))


def test_rows_of_mixed_shapes_are_read_row_by_row() -> None:
    for values in ({"prompt": "hi"}, {"messages": [USER]}, {"question": "hi"}):
        assert READER.pair(row(**values, chosen="yes", rejected="no")).prompt == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("instruction", "more", "expected"), [("do", "it", "do\nit"), ("do", " ", "do"), ("", "it", "it")]
)
def test_an_input_stands_below_its_instruction(instruction: str, more: str, expected: str) -> None:
    assert READER.prompt(row(instruction=instruction, input=more))[0] == (Message("user", expected),)


def test_a_prefix_and_a_system_prompt_come_first() -> None:
    found = reader(prompt_prefix="> ", system_prompt="brief").prompt(row(prompt="hi"))[0]
    assert found == (Message("system", "brief"), Message("user", "> hi"))


def test_columns_beside_the_prompt_are_those_of_supervised_data() -> None:
    values = {"prompt": "hi", "system": "s", "history": [["one", "two"]], "tools": [{"name": "f"}]}
    system, *rest = READER.pair(row(**values, chosen="yes", rejected="no")).prompt
    assert system.content.startswith('s\n\nYou can call these functions:\n{"name": "f", "parameters": ')
    assert rest == [Message("user", "one"), Message("assistant", "two"), Message("user", "hi")]
    chat = row(conversations=[{"from": "human", "value": "hi"}], system="s", completion="yes", label=False)
    (judged,) = READER.judged(chat)
    assert judged.prompt == (Message("system", "s"), Message("user", "hi"))
    own = row(messages=[{"role": "system", "content": "own"}, USER], system="s")
    assert READER.prompt(own)[0][0] == Message("system", "own")
    assert reader(tools="template").pair(row(**values, chosen="yes", rejected="no")).tools == (
        template_tool({"name": "f"}),
    )


def test_columns_that_are_named_must_be_there_and_may_be_empty() -> None:
    columns = Columns(prompt="q", system="rules", history="turns", input="more")
    named = reader(columns=columns)
    values = {"q": "hi", "rules": "s", "turns": "[]", "more": "there", "chosen": "yes", "rejected": "no"}
    assert named.pair(row(**values)).prompt == (Message("system", "s"), Message("user", "hi\nthere"))
    nothing = values | {"rules": None, "turns": None, "more": ""}
    assert named.pair(row(**nothing)).prompt == (Message("user", "hi"),)
    for name in columns.__struct_fields__:
        if (column := getattr(columns, name)) is not None:
            with pytest.raises(DataError, match=f"no column '{column}' .*name yours in preference.columns"):
                named.pair(row(**{key: value for key, value in values.items() if key != column}))


def test_what_was_read_and_what_was_not_is_known() -> None:
    one = reader()
    one.pair(row(id=1, prompt="hi", system="s", chosen="yes", rejected="no", messages=[USER]))
    one.judged(row(messages=[USER, ASSISTANT], label=True))
    assert list(one.read) == ["system", "prompt", "chosen", "rejected", "messages", "label"]
    assert list(one.seen) == ["id", "prompt", "system", "chosen", "rejected", "messages", "label"]


def test_calls_are_part_of_an_answer() -> None:
    as_text = READER.pair(row(prompt="hi", chosen=CALL, rejected="no")).chosen
    assert as_text == Message("assistant", '{"name": "f", "arguments": {}}')
    legacy = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    sharegpt = {"from": "function_call", "value": as_text.content}
    for call in (legacy, sharegpt, [USER, legacy]):
        assert READER.pair(row(prompt="hi", chosen=call, rejected="no")).chosen == as_text
    by_template = reader(tools="template").pair(row(prompt="hi", chosen=CALL, rejected="no")).chosen
    assert by_template == Message("assistant", "", calls=('{"name": "f", "arguments": {}}',))


def test_weights_exclude_nothing_from_a_comparison() -> None:
    same = {**ASSISTANT, "weight": 0}
    with pytest.raises(DroppedRow, match="chosen and rejected are the same"):
        READER.pair(row(prompt="hi", chosen=same, rejected="yes"))


def test_a_judged_pair_is_two_judgements_and_a_prompt_loses_its_answer() -> None:
    good, bad = READER.judged(row(prompt="hi", chosen="yes", rejected="no"))
    assert [(one.completion.content, one.good) for one in (good, bad)] == [("yes", True), ("no", False)]
    assert READER.prompt(row(messages=[USER, ASSISTANT])) == ((Message("user", "hi"),), ())


SYSTEM = {"role": "system", "content": "s"}
MORE = {"role": "user", "content": "so?"}
FIRST = [Message("user", "hi")]
THEN = [*FIRST, Message("assistant", "yes"), Message("user", "so?")]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("beside", "chat", "expected"),
    [
        ({"prompt": "hi"}, [USER], FIRST),
        ({"prompt": " hi\n"}, [USER], [Message("user", " hi\n")]),
        ({"prompt": [USER]}, [USER], FIRST),
        ({"prompt": json.dumps([USER])}, [USER], FIRST),
        ({"prompt": "hi"}, [SYSTEM, USER], [Message("system", "s"), *FIRST]),
        ({"prompt": [SYSTEM, USER]}, [USER], [Message("system", "s"), *FIRST]),
        ({"prompt": "hi", "system": "s"}, [SYSTEM, USER], [Message("system", "s"), *FIRST]),
        ({"prompt": "hi"}, [USER, ASSISTANT, MORE], THEN),
        ({"prompt": "so?"}, [USER, ASSISTANT, MORE], THEN),
        ({"prompt": "so?", "history": [["hi", "yes"]]}, [USER, ASSISTANT, MORE], THEN),
        ({"prompt": "so?", "history": [["hi", "yes"]]}, [MORE], THEN),
        ({"prompt": [USER, ASSISTANT]}, [MORE], THEN),
        ({"history": [["hi", "yes"]]}, [MORE], THEN),
        ({"prompt": [USER, ASSISTANT, MORE]}, [], THEN),
        ({"prompt": None}, [USER], FIRST),
        ({"prompt": ""}, [USER], FIRST),
        ({}, [USER], FIRST),
        ({"messages": [USER, said("good")]}, [USER], FIRST),
        ({"messages": [USER, said("good")]}, [], FIRST),
        ({"prompt": "hi", "messages": [USER, said("good")]}, [USER], FIRST),
        ({"instruction": "hi", "input": ""}, [USER], FIRST),
        ({"prompt": [USER]}, [CALL, {"role": "tool", "content": "1"}], None),
    ],
)
def test_a_prompt_that_answers_begin_with_is_there_once(beside: Any, chat: Any, expected: Any) -> None:
    if expected is None:  # answers that go on after the prompt
        expected = [*FIRST, Message("assistant", '{"name": "f", "arguments": {}}'), Message("tool", "1")]
    values = {**beside, "chosen": [*chat, said("good")], "rejected": [*chat, said("bad")]}
    pair = READER.pair(row(**values))
    assert (list(pair.prompt), pair.chosen.content, pair.rejected.content) == (expected, "good", "bad")
    as_text = READER.pair(row(**{key: value if key in beside else json.dumps(value) for key, value in values.items()}))
    assert as_text == pair
    good, bad = READER.judged(row(**values))
    assert good.prompt == bad.prompt == pair.prompt
    (judged,) = READER.judged(row(**beside, completion=[*chat, said("good")], label=1.0))
    assert (judged.prompt, judged.completion.content) == (pair.prompt, "good")


def test_sharegpt_answers_begin_with_the_prompt_too() -> None:
    asked = {"from": "human", "value": "hi"}
    chosen, rejected = ([asked, {"from": "gpt", "value": text}] for text in ("yes", "no"))
    pair = READER.pair(row(conversations=[asked], chosen=chosen, rejected=rejected, system="s"))
    assert pair.prompt == (Message("system", "s"), Message("user", "hi"))


def test_a_prefix_is_put_before_the_prompt_that_answers_repeat() -> None:
    values = row(prompt="hi", chosen=[USER, said("yes")], rejected=[USER, said("no")])
    assert reader(prompt_prefix="> ").pair(values).prompt == (Message("user", "> hi"),)


def test_one_answer_may_repeat_the_prompt_and_the_other_not() -> None:
    for values in ({"prompt": "hi"}, {}):
        pair = READER.pair(row(**values, chosen=[USER, said("yes")], rejected="no"))
        assert (list(pair.prompt), pair.rejected.content) == (FIRST, "no")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "other", "chosen": [USER, ASSISTANT], "rejected": [USER, said("no")]}, "begin with the prompt"),
        ({"prompt": [MORE], "chosen": [USER, ASSISTANT], "rejected": "no"}, "begin with the prompt"),
        (
            {"prompt": [SYSTEM, USER], "chosen": [{**SYSTEM, "content": "t"}, USER, ASSISTANT], "rejected": "no"},
            "begin with the prompt",
        ),
        (
            {"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [MORE, said("no")]},
            "chosen and rejected differ before the last answer",
        ),
        (
            {"prompt": "hi", "chosen": [USER, ASSISTANT, MORE, said("x")], "rejected": [USER, said("no")]},
            "chosen and rejected differ before the last answer",
        ),
        ({"prompt": [USER], "history": [["so?", "x"], ["hi", "z"]], "chosen": "a", "rejected": "b"}, None),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is null"),
        ({"prompt": "hi", "chosen": None, "rejected": "b"}, "'chosen' is null"),
    ],
)
def test_rows_that_contradict_themselves_are_dropped(values: Any, reason: str | None) -> None:
    if reason is None:
        assert READER.pair(row(**values)).prompt[-1] == FIRST[0]
        return
    with pytest.raises(DroppedRow, match=reason):
        READER.pair(row(**values))


def test_judgements_that_contradict_themselves_are_dropped() -> None:
    for values, reason in (
        ({"prompt": "other", "completion": [USER, ASSISTANT]}, "'completion' does not begin with the prompt"),
        ({"prompt": "hi", "completion": None}, "'completion' is null"),
        ({"prompt": " ", "completion": "yes"}, "empty prompt"),
    ):
        with pytest.raises(DroppedRow, match=reason):
            READER.judged(row(**values, label=True))
    with pytest.raises(DroppedRow, match="'label' is null"):
        READER.judged(row(prompt="hi", completion="yes", label=None))


def test_a_judged_conversation_may_stand_beside_its_prompt() -> None:
    (judged,) = READER.judged(row(prompt="hi", messages=[USER, ASSISTANT], label=True))
    assert (list(judged.prompt), judged.completion.content) == (FIRST, "yes")
    (alone,) = READER.judged(row(completion=[USER, ASSISTANT], label=True))
    assert alone == judged


def test_roles_are_those_of_supervised_data() -> None:
    wrong = row(prompt=[{"from": "hummany", "value": "hi"}], chosen="yes", rejected="no")
    with pytest.raises(DataError, match="'prompt': message 0: the role 'hummany' is none; did you mean 'human'"):
        READER.pair(wrong)
    with pytest.raises(DataError, match="'chosen': message 1: the role 'asistant' is none"):
        READER.pair(row(prompt="hi", chosen=[USER, {"role": "asistant", "content": "x"}], rejected="no"))
    assert reader(roles={"hummany": "user"}).pair(wrong).prompt == tuple(FIRST)


def test_text_that_is_no_messages_stays_text() -> None:
    for text in ('{"role": "admin"}', "[1, 2]", "[", '[{"role": "user"}]', "{'role': 'x'}", "[]"):
        pair = READER.pair(row(prompt=text, chosen=text, rejected="no"))
        assert (pair.prompt[0].content, pair.chosen.content) == (text, text)
    with pytest.raises(DataError, match="'chosen' is a list of messages as Python prints it; write it as JSON"):
        READER.pair(row(prompt="hi", chosen=str([USER, ASSISTANT]), rejected="no"))


def test_an_input_goes_with_a_text_only() -> None:
    with pytest.raises(DataError, match="'more' goes with a prompt that is text"):
        reader(columns=Columns(prompt="prompt", input="more")).prompt(row(prompt=[USER], more="x"))


def test_dialogues_as_text_are_conversations() -> None:
    beginning = "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: so?\n\nAssistant:"
    for values in ({}, {"prompt": beginning}, {"prompt": "so?"}):
        pair = READER.pair(row(**values, chosen=f"{beginning} good", rejected=f"{beginning} bad\n\nreally"))
        assert (list(pair.prompt), pair.chosen.content, pair.rejected.content) == (THEN, "good", "bad\n\nreally")
    pair = READER.pair(row(prompt=beginning, chosen="good", rejected="bad"))
    assert (list(pair.prompt), pair.chosen.content) == (THEN, "good")
    plain = reader(template="none").pair(row(prompt=beginning, chosen=" good", rejected=" bad"))
    assert (plain.prompt[0].content, plain.chosen.content) == (beginning, " good")


def test_the_shape_says_where_the_prompt_is() -> None:
    both = row(prompt="other", instruction="hi", messages=[MORE])
    assert [reader(shape=shape).prompt(both)[0][0].content for shape in ("auto", "alpaca", "messages")] == [
        "other",
        "hi",
        "so?",
    ]
