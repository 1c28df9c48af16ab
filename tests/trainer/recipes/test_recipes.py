"""Every recipe on small files in the format of its set, sound and broken. All rows here were written for this test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config.loading import load_config
from trainer.errors import DataError
from trainer.evaluation.metrics import METRICS
from trainer.recipes import RECIPES
from trainer.recipes.recipe import Row, Split


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


CLINC = {
    key: [[f"{key} one", "oos" if "oos" in key else "pay_bill"]]
    for key in ("train", "val", "test", "oos_train", "oos_val", "oos_test")
}
SNIPS = {"TellJoke": [{"data": [{"text": "tell a joke about "}, {"text": " cats ", "entity": "topic"}, {"text": "!"}]}]}
GEOGRAPHY = [
    {
        "query-split": "test",
        "sentences": [
            {
                "question-split": "train",
                "text": "how big is lake1 or lake10",
                "variables": {"lake1": "como", "lake10": ""},
            }
        ],
        "sql": ['SELECT SIZE FROM LAKE WHERE NAME = "lake1" OR NAME = "lake10" ;', "SELECT 1 ;"],
        "variables": [{"name": "lake10", "example": "garda"}, {"name": "lake1", "example": "iseo"}],
    }
]
TOOLS = [
    {
        "conversations": [
            {"from": "human", "value": "What is 2+2?"},
            {"from": "function_call", "value": '{"name": "add"}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "It is 4."},
        ],
        "tools": "[{}]",
    }
]
FILES: dict[str, dict[str, str]] = {  # one set for every recipe
    "snips": {"TellJoke/train_TellJoke_full.json": json.dumps(SNIPS), "TellJoke/validate_TellJoke.json": "{}"},
    "banking77": {"categories.json": '["fee", "card"]', "train.csv": 'text,category\n"Why, ""this"" fee?",fee\n'},
    "clinc150": {"data_full.json": json.dumps(CLINC)},
    "emotion": {"mapping.txt": "0\tsad\n1\tglad\n", "train_text.txt": "so nice \n", "train_labels.txt": "1\n"},
    "wnut17": {"wnut17train.conll": "Ada\tB-person\nLovelace\tI-person\nin\tO\nOslo\tB-location\n\t\nhi\tO\n"},
    "resume_ner": {"train.char.bmes": "李 B-NAME\n雷 E-NAME\n， O\n汉 B-RACE\n族 E-RACE\n。 O\n王 S-NAME\n"},
    "sqlqa": {"sqlqa.jsonl": lines({"question": "q", "context": "CREATE TABLE t (a INT)", "answer": "[SQL] s [/SQL]"})},
    "geography": {"geography.json": json.dumps(GEOGRAPHY), "g.sqlite": ""},
    "geography_query": {"geography.json": json.dumps(GEOGRAPHY), "g.sqlite": ""},
    "chatglm_spo": {"spo_0.json": lines({"instruction": "抽取：", "input": "灯不亮", "output": "灯_部件故障_不亮"})},
    "advertisegen": {"dev.json": lines({"content": "类型#裙", "summary": "一条裙子。"})},
    "e2e_nlg": {"devel-fixed.no-ol.csv": "mr,ref,fixed\nname[A],A is a place.,0\nname[A],There is A.,0\n"},
    "gsm8k": {"train.jsonl": lines({"question": "1000+200?", "answer": "It is 1,200.\n#### 1,200"})},
    "humaneval": {},
    "toolcall": {"glaive_toolcall_en_demo.json": json.dumps(TOOLS)},
}
ROWS: dict[str, list[Row]] = {
    "snips": [
        {
            "prompt": "Give the intent and slots of this request as JSON: tell a joke about  cats !",
            "response": '{"intent": "TellJoke", "slots": {"topic": "cats"}}',
        }
    ],
    "banking77": [
        {
            "prompt": 'Give the intent of this banking question: Why, "this" fee?',
            "response": "fee",
            "labels": ["fee", "card"],
            "text": 'Why, "this" fee?',
        }
    ],
    "emotion": [
        {
            "prompt": "Give the emotion of this tweet: so nice",
            "response": "glad",
            "labels": ["sad", "glad"],
            "text": "so nice",
        }
    ],
    "wnut17": [
        {
            "prompt": "Give the named entities in this text as JSON: Ada Lovelace in Oslo",
            "response": '{"person": ["Ada Lovelace"], "location": ["Oslo"]}',
            "tokens": ["Ada", "Lovelace", "in", "Oslo"],
            "tags": ["B-person", "I-person", "O", "B-location"],
        },
        {
            "prompt": "Give the named entities in this text as JSON: hi",
            "response": "{}",
            "tokens": ["hi"],
            "tags": ["O"],
        },
    ],
    "resume_ner": [
        {
            "prompt": "找出下面简历文本中的实体，用JSON回答：李雷，汉族。王",
            "response": '{"NAME": ["李雷", "王"], "RACE": ["汉族"]}',
            "tokens": [*"李雷，汉族。王"],
            "tags": ["B-NAME", "E-NAME", "O", "B-RACE", "E-RACE", "O", "S-NAME"],
        }
    ],
    "sqlqa": [{"prompt": "CREATE TABLE t (a INT)\nq", "response": "[SQL] s [/SQL]"}],
    "chatglm_spo": [{"prompt": "抽取：灯不亮", "response": "灯_部件故障_不亮"}],
    "advertisegen": [{"prompt": "类型#裙", "response": "一条裙子。"}],
    "gsm8k": [{"prompt": "1000+200?", "response": "It is 1,200.\n#### 1,200", "answer": "1200"}],
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def rows_of(name: str, folder: Path, split: Split = "train") -> list[Row]:
    return list(RECIPES[name].rows(folder, split))


def test_every_recipe_is_scored_by_metrics_that_there_are() -> None:
    assert all(recipe.metrics and set(recipe.metrics) <= set(METRICS) for recipe in RECIPES.values())


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_small_files(name: str, tmp_path: Path) -> None:
    found = rows_of(name, write(tmp_path, FILES[name]))
    assert sorted(found, key=str) == sorted(ROWS[name], key=str)


BROKEN = [
    (
        "snips",
        {"TellJoke/train_TellJoke_full.json": '{"TellJoke": [{"text": 1}]}'},
        "TellJoke_full.json is not built as",
    ),
    ("snips", {"TellJoke/train_TellJoke_full.json": '{\n"TellJoke": [}'}, "line 2 is not valid JSON"),
    ("snips", {"train.json": "{}"}, "is not built as this set is published"),
    (
        "banking77",
        {"categories.json": "[]", "train.csv": "text,label\na,b\n"},
        "train.csv line 2 has no text under 'cat",
    ),
    ("banking77", {"categories.json": "[]"}, "there is no data file .*train.csv; is data.path the folder"),
    ("banking77", {"categories.json": "[]", "train.csv": 'text,category\n"a,b\n'}, "line 2 is not valid CSV"),
    ("clinc150", {"data_full.json": '{"train": [["a"]]}'}, "data_full.json is not built as"),
    ("emotion", {**FILES["emotion"], "train_labels.txt": "1\n0\n"}, "1 lines in train_text.txt, but 2 labels"),
    ("emotion", {**FILES["emotion"], "train_labels.txt": "7\n"}, "train_labels.txt line 1: '7' is not in mapping"),
    ("wnut17", {"wnut17train.conll": "Ada\tB-person\nLovelace\n"}, "line 2 is not a token and its tag: 'Lovelace'"),
    ("resume_ner", {"train.char.bmes": "李 X-NAME\n"}, "line 1 is not a token and its tag"),
    (
        "sqlqa",
        {"sqlqa.jsonl": lines({"question": "q", "context": "c", "answer": 3})},
        "line 1 has no text under 'answer'",
    ),
    ("sqlqa", {"sqlqa.jsonl": "\n[1]\n"}, "line 2 is not an object"),
    ("geography", {"geography.json": json.dumps(GEOGRAPHY)}, "must hold one .*sqlite file"),
    ("geography", {"geography.json": '[{"sentences": [{}]}]', "g.sqlite": ""}, "geography.json is not built as"),
    ("chatglm_spo", {"spo_0.json": '{"instruction": \n'}, "spo_0.json line 1 is not valid JSON"),
    ("e2e_nlg", {"devel-fixed.no-ol.csv": "mr\nname[A]\n"}, "line 2 has no text under 'ref'"),
    ("gsm8k", {"train.jsonl": lines({"question": "q", "answer": "five"})}, "row 1: the answer does not end with"),
    ("toolcall", {"glaive_toolcall_en_demo.json": '[{"tools": ""}]'}, "is not built as"),
]


@pytest.mark.parametrize(("name", "files", "message"), BROKEN)
def test_broken_files_are_named_with_the_line(name: str, files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(name, write(tmp_path, files))


def test_a_run_adds_the_tokens_of_its_recipe_unless_it_names_its_own(tmp_path: Path) -> None:
    write(tmp_path, FILES["sqlqa"])
    settings = [f"data.path={tmp_path}", "data.recipe=sqlqa", "output=run"]
    assert load_config(None, settings, {}).added_tokens == ["[SQL]", "[/SQL]"]
    assert load_config(None, [*settings, "added_tokens=[X]"], {}).added_tokens == ["X"]
    assert load_config(None, [*settings, "added_tokens=[]"], {}).added_tokens == []
    assert load_config(None, ["data.path=a.jsonl", "output=run"], {}).added_tokens == []
