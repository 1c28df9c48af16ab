"""What is learned of a row: masks for chat, plain and multi-turn data, and what becomes of rows that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.factory import make_tokenizer
from tests.trainer.support import colour_rows, write_jsonl
from trainer.config.data import Columns, DataConfig
from trainer.data.encoding import IGNORED, Example
from trainer.data.splits import progress_messages
from trainer.data.training_data import TrainingData, load_data
from trainer.errors import DataError

END = 258  # <|im_end|>
MESSAGES = Columns(messages="messages")
MULTI = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]


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


def test_it_is_known_how_tools_were_written_where_there_were_any(tmp_path: Path, tokenizer: Any) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    with_call = {"messages": [{"role": "user", "content": "go"}, call]}
    with_tools = {"messages": MULTI, "tools": [{"name": "f"}]}
    for rows, form in (([with_call], "text"), ([with_tools], "text"), ([{"messages": MULTI}], None)):
        assert load(tmp_path, tokenizer, rows).tools == form
    knows = (
        "{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls %}"
        "call {{ c.function.name }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    by_template = load(tmp_path, tokenizer, [with_call], template=knows)
    assert (by_template.tools, learned(tokenizer, by_template.train[0])) == ("template", ["call f<|im_end|>"])
    assert load(tmp_path, tokenizer, [with_call], template=knows, tools="text").tools == "text"
    assert load(tmp_path, tokenizer, [{"prompt": "2+2=", "response": "4"}], template="none").tools is None


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


def test_everything_may_be_learned_but_what_is_excluded(tmp_path: Path, tokenizer: Any) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = load(tmp_path, tokenizer, [{"messages": messages}], learn="everything").train[0]
    assert learned(tokenizer, whole) == [text_of(tokenizer, whole).removeprefix("<|im_start|>")]
    messages[1]["weight"] = 0  # type: ignore[assignment]
    part = load(tmp_path, tokenizer, [{"messages": messages}], learn="everything").train[0]
    assert part.input_ids == whole.input_ids
    assert learned(tokenizer, part) == [
        "user\na<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>",
    ]


def test_only_the_last_answer_or_those_not_excluded_are_learned(tmp_path: Path, tokenizer: Any) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
    last = load(tmp_path, tokenizer, [{"messages": messages}], learn="last_answer").train[0]
    assert learned(tokenizer, last) == ["d<|im_end|>"]
    messages[3]["train"] = False
    first = load(tmp_path, tokenizer, [{"messages": messages}]).train[0]
    assert learned(tokenizer, first) == ["b<|im_end|>"]
    assert text_of(tokenizer, first).endswith("b<|im_end|>")  # nothing is read after the last thing learned


def test_plain_text_is_learned_whole_but_for_its_first_token(tmp_path: Path, tokenizer: Any) -> None:
    data = load(tmp_path, tokenizer, [{"text": "从头到尾"}, {"text": "<|im_end|> x <|im_end|>"}], validation=1)
    texts = {text_of(tokenizer, example) for example in (*data.train, *data.validation)}
    assert texts == {"从头到尾<|im_end|>", "<|im_end|> x <|im_end|>"}
    assert all(sum(label == IGNORED for label in example.labels) == 1 for example in data.train)
    assert not data.questions
    assert "no template: the rows are plain text, all of which is learned" in data.notes


def test_conversations_need_a_template(tmp_path: Path, tokenizer: Any) -> None:
    for row in ({"messages": MULTI}, {"prompt": "q", "response": "a", "history": [["x", "y"]]}):
        with pytest.raises(DataError, match=r"data\.template: none joins one prompt and one response"):
            load(tmp_path, tokenizer, [row], template="none")


def test_a_template_whose_marker_this_base_does_not_know_is_warned_of(tmp_path: Path, tokenizer: Any) -> None:
    notes = load(tmp_path, tokenizer, colour_rows(4), template="llama3").notes
    assert any("warning: the template ends answers with '<|eot_id|>'" in note for note in notes)
    assert any("warning: template llama3 is not the base's; serve it with --chat-template" in note for note in notes)
    known = load(tmp_path, tokenizer, colour_rows(4), template="chatml").notes
    assert not any("ends answers with" in note for note in known)


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


def test_max_rows_draws_from_the_whole_file_by_the_seed(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"row {i}", "response": "x"} for i in range(100)]
    some, same, other = (load(tmp_path, tokenizer, rows, seed=seed, max_rows=20) for seed in (1, 1, 2))
    assert len(some.train) == 20
    assert some.train == same.train != other.train
    numbers = [int(text_of(tokenizer, example).split("row ")[1].split("<")[0]) for example in some.train]
    assert numbers == sorted(numbers)
    assert max(numbers) > 60
    assert len(load(tmp_path, tokenizer, rows, max_rows=20, validation=0.25).validation) == 5


def test_duplicates_are_said_and_dropped_when_asked(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"row {i % 6}", "response": "x"} for i in range(9)]
    kept = load(tmp_path, tokenizer, rows)
    assert len(kept.train) == 9
    assert "repeated: 3 rows (kept; data.duplicates: drop leaves them out)" in kept.notes
    dropped = load(tmp_path, tokenizer, rows, duplicates="drop")
    assert len(dropped.train) == 6
    assert "repeated: 3 rows (left out)" in dropped.notes


def test_validation_rows_that_train_as_well_are_warned_of(tmp_path: Path, tokenizer: Any) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [*colour_rows(2), {"prompt": "new", "response": "x"}])
    notes = load(tmp_path, tokenizer, colour_rows(6), validation=str(held)).notes
    assert "warning: 2 rows to validate on and to train on as well" in notes


def test_validation_rows_that_are_all_unusable_are_an_error(tmp_path: Path, tokenizer: Any) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "long " * 99, "response": "x"}])
    with pytest.raises(DataError, match=r"held.jsonl leaves nothing to validate on: 1 row: longer than"):
        load(tmp_path, tokenizer, colour_rows(), validation=str(held), max_length=100)


def test_notes_say_the_shape_the_template_and_what_is_cut(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"instruction": "译", "input": "你好", "output": "hello"}]
    assert load(tmp_path, tokenizer, rows).notes == (
        f"{tmp_path / 'data.jsonl'}: 1 row of the shape alpaca (instruction, output, input)",
        "template: the base's own; every answer of a row is learned",
        "rows above 1024 tokens are left out",
    )


def test_progress_is_told_while_reading_and_tokenising(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", colour_rows(600))
    told: list[tuple[str, int, int | None]] = []
    config = DataConfig(path=str(path), validation=0.5)
    load_data(config, tokenizer, (END,), 0, lambda what, done, total: told.append((what, done, total)))
    assert told[0] == (f"reading {path}", 256, None)
    assert [(done, total) for what, done, total in told if what.startswith("tokenising")] == [
        (0, 300), (256, 300), (300, 300), (0, 300), (256, 300), (300, 300),
    ]  # fmt: skip


def test_progress_is_spoken_of_now_and_then(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", colour_rows(600))
    config, said, unsaid = DataConfig(path=str(path), validation=0), list[str](), list[str]()
    load_data(config, tokenizer, (END,), 0, progress_messages(said.append, seconds=0))
    load_data(config, tokenizer, (END,), 0, progress_messages(unsaid.append))
    assert said[0] == f"reading {path}: 256 rows"
    assert said[-1] == f"tokenising {path}: 600 of 600 rows"
    assert not unsaid


def test_a_full_disk_is_one_line(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.disk.tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(DataError, match=r"the disk is full: the tokens are kept in .*; make room, or point TMPDIR"):
        load(tmp_path, tokenizer, colour_rows())


LONG = {"prompt": "long " * 40, "response": "x"}


@pytest.mark.parametrize("seed", range(4))
def test_a_row_held_back_that_is_too_long_gives_its_place_to_another(tmp_path: Path, tokenizer: Any, seed: int) -> None:
    data = load(tmp_path, tokenizer, [*colour_rows(3), LONG], seed, validation=1, max_length=100)
    assert (len(data.train), len(data.validation), len(data.questions)) == (2, 1, 1)
    assert data.dropped == {"longer than data.max_length 100": 1}
    redrawn = "no row that was drawn to validate on can be used: 1 row drawn in their place"
    assert (redrawn in data.notes) == (seed == 0)


def test_without_rows_that_fit_it_is_said_which_part_has_none(tmp_path: Path, tokenizer: Any) -> None:
    for rows, words in (
        ([LONG] * 6, "leaves nothing to learn from: 6 rows: longer than"),
        ([*colour_rows(1), *[LONG] * 5], "leaves nothing to validate on: 2 rows: longer than"),
    ):
        with pytest.raises(DataError, match=words):
            load(tmp_path, tokenizer, rows, 1, validation=2, max_length=100)


def test_a_row_held_back_is_cut_as_those_to_train_on_and_asked_what_is_left(tmp_path: Path, tokenizer: Any) -> None:
    held = str(write_jsonl(tmp_path / "held.jsonl", [LONG]))
    data = load(tmp_path, tokenizer, [LONG], validation=held, max_length=60, too_long="cut_start")
    assert data.cut == {"max_length": 2}
    (example,), (question,) = data.validation, data.questions
    assert len(example) == 60
    assert question.input_ids == example.input_ids[:-2]


def test_plain_text_needs_no_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    expected = load(tmp_path, tokenizer, [{"text": "all of it"}])
    tokenizer.chat_template = None
    found = load(tmp_path, tokenizer, [{"text": "all of it"}])
    assert list(found.train) == list(expected.train)
    assert found.notes == expected.notes
    with pytest.raises(DataError, match="the base has no chat template"):
        load(tmp_path, tokenizer, colour_rows())
    held = str(write_jsonl(tmp_path / "held.jsonl", colour_rows()))
    with pytest.raises(DataError, match="the base has no chat template"):
        load(tmp_path, tokenizer, [{"text": "all of it"}], validation=held)


def test_empty_answers_are_not_learned_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    empty = [*MULTI[:1], {"role": "assistant", "content": ""}, *MULTI[2:]]
    data = load(tmp_path, tokenizer, [{"messages": empty}, {"messages": MULTI}])
    assert learned(tokenizer, data.train[0]) == ["assistant<|im_end|>"]
    assert "not learned: empty answers, in 1 row" in data.notes
