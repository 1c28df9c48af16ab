from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest

from hotswap.demo.commands import BATCH_SIZE, RECIPES, DemoSettings
from hotswap.demo.flow import draw_rows
from hotswap.demo.tasks import CONTACTS, DATES, Task, TaskRow, same_json, same_text, write_jsonl

TASKS = pytest.mark.parametrize("task", [CONTACTS, DATES], ids=lambda task: task.name)


@TASKS
def test_rows_repeat_with_the_seed_and_differ_with_another(task: Task) -> None:
    assert task.rows(50, 10, seed=1) == task.rows(50, 10, seed=1)
    assert task.rows(50, 10, seed=1) != task.rows(50, 10, seed=2)


@TASKS
def test_held_out_rows_share_no_prompt_and_no_answer_with_training(task: Task) -> None:
    train, held_out = task.rows(480, 40, seed=0)
    assert (len(train), len(held_out)) == (480, 40)
    assert len({row.response for row in [*train, *held_out]}) == 520
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}


def test_contacts_are_solvable_from_their_line() -> None:
    for row in CONTACTS.rows(300, 1, seed=3)[0]:
        line = row.prompt.splitlines()[-1]
        contact = json.loads(row.response)
        assert list(contact) == ["name", "city", "phone"]
        assert all(part in line for part in [*contact["name"].split(), contact["city"], contact["phone"]])


MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def test_dates_are_the_ones_written_in_their_sentence() -> None:
    for row in DATES.rows(500, 1, seed=4)[0]:
        sentence = row.prompt.splitlines()[-1]
        date = datetime.date.fromisoformat(row.response)
        numbers = {int(number) for number in re.findall(r"\d+", sentence)}
        assert numbers == {date.day, date.year}
        assert MONTHS[date.month - 1] in sentence


@pytest.mark.parametrize(("day", "written"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (12, "12th"),
                                              (13, "13th"), (21, "21st"), (22, "22nd"), (30, "30th")])  # fmt: skip
def test_ordinals(day: int, written: str) -> None:
    from hotswap.demo.tasks import _ordinal

    assert _ordinal(day) == written


def test_right_json_is_equal_as_a_document() -> None:
    wanted = '{"name": "A B", "city": "C", "phone": "1"}'
    assert same_json(' {"city":"C","name":"A B","phone":"1"}\n', wanted)
    assert not same_json('{"name": "A B", "city": "C"}', wanted)
    assert not same_json(f"Sure: {wanted}", wanted)
    assert not same_json("", wanted)


def test_right_text_is_equal_apart_from_space() -> None:
    assert same_text(" 2020-01-02\n", "2020-01-02")
    assert not same_text("2020-01-02.", "2020-01-02")


def test_jsonl_has_the_columns_that_the_trainer_reads(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [TaskRow("say é", "é"), TaskRow("a", "b")])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "say é", "response": "é"},
        {"prompt": "a", "response": "b"},
    ]


def test_every_recipe_has_its_rows(tmp_path: Path) -> None:
    train, held_out = draw_rows(DemoSettings(out=tmp_path, base="b", held_out=7))
    assert all(len(train[recipe.task.name]) >= recipe.steps * BATCH_SIZE for recipe in RECIPES)
    assert [len(rows) for rows in held_out.values()] == [7, 7]
