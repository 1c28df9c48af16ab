"""Every recipe on the whole set that it is for: row counts as published, and what the metrics rely on."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from tests.shared_data import SHARED, needs
from trainer.recipes import RECIPES

FOLDERS = {"e2e_nlg": "e2e_nlg_cleaned", "geography_query": "geography"}
COUNTS: dict[str, tuple[int | None, int | None, int | None]] = {  # train, validation, test
    "snips": (13784, None, 700),
    "banking77": (10003, None, 3080),
    "clinc150": (15100, 3100, 5500),  # with 100, 100 and 1,000 out of scope
    "emotion": (3257, 374, 1421),
    "wnut17": (3394, 1009, 1287),
    "resume_ner": (3821, 463, 477),
    "sqlqa": (3600, None, 400),  # 4,000 rows
    "geography": (549, 49, 279),
    "geography_query": (536, 159, 182),
    "chatglm_spo": (1441, None, 50),
    "advertisegen": (963, None, 107),  # 1,070 rows
    "e2e_nlg": (4299, None, 4693),
    "gsm8k": (7473, None, 1319),
    "humaneval": (None, None, 164),
    "toolcall": (270, None, 30),  # 300 conversations
}


def folder_of(name: str) -> Path:
    return SHARED / FOLDERS.get(name, name)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(FOLDERS.get(name, name))) for name in COUNTS])
def test_row_counts_are_the_published_ones(name: str) -> None:
    recipe = RECIPES[name]
    expected = dict(zip(("train", "validation", "test"), COUNTS[name], strict=True))
    assert recipe.splits == tuple(split for split, count in expected.items() if count)
    for split in recipe.splits:
        rows = list(recipe.rows(folder_of(name), split))
        assert len(rows) == expected[split]
        empty = sum("messages" not in row and not (row["prompt"].strip() and row["response"].strip()) for row in rows)
        assert empty == (22 if (name, split) == ("chatglm_spo", "train") else 0)  # reports without a triple


def test_every_recipe_is_counted() -> None:
    assert set(COUNTS) == set(RECIPES)


@needs("snips")
def test_the_first_rows_of_snips_hold_all_intents() -> None:
    rows = list(RECIPES["snips"].rows(SHARED / "snips", "test"))[:100]
    assert len({json.loads(row["response"])["intent"] for row in rows}) == 7


@needs("clinc150")
def test_clinc_has_151_labels_and_out_of_scope_rows() -> None:
    rows = list(RECIPES["clinc150"].rows(SHARED / "clinc150", "test"))
    assert Counter(row["response"] for row in rows)["oos"] == 1000
    assert len(rows[0]["labels"]) == 151
    assert {row["response"] for row in rows} == set(rows[0]["labels"])


@needs("banking77")
def test_banking_answers_are_among_its_labels() -> None:
    rows = list(RECIPES["banking77"].rows(SHARED / "banking77", "test"))
    assert {row["response"] for row in rows} == set(rows[0]["labels"])


@needs("geography")
def test_all_but_two_geography_queries_run_on_its_database() -> None:
    """244 of the 246 queries as published run; variables that were not filled would find nothing or fail."""
    failed = set()
    for split in ("train", "validation", "test"):
        for row in RECIPES["geography"].rows(SHARED / "geography", split):
            connection = sqlite3.connect(f"file:{row['sqlite']}?mode=ro", uri=True)
            try:
                connection.execute(row["response"]).fetchall()
            except sqlite3.Error:
                failed.add(row["response"])
            finally:
                connection.close()
    assert len(failed) == 2


@needs("wnut17")
def test_wnut_holds_as_many_entities_as_it_has_beginnings() -> None:
    tags = (SHARED / "wnut17" / "emerging.test.annotated").read_text(encoding="utf-8").split("\n")
    beginnings = Counter(line.split("\t")[1][2:] for line in tags if "\tB-" in line)
    found: Counter[str] = Counter()
    for row in RECIPES["wnut17"].rows(SHARED / "wnut17", "test"):
        found.update({kind: len(texts) for kind, texts in json.loads(row["response"]).items()})
    assert found == beginnings


@needs("resume_ner")
def test_resume_holds_as_many_entities_as_it_has_beginnings() -> None:
    tags = (SHARED / "resume_ner" / "test.char.bmes").read_text(encoding="utf-8").split("\n")
    beginnings = Counter(line.split(" ")[1][2:] for line in tags if line[2:4] in ("B-", "S-"))
    found: Counter[str] = Counter()
    for row in RECIPES["resume_ner"].rows(SHARED / "resume_ner", "test"):
        found.update({kind: len(texts) for kind, texts in json.loads(row["response"]).items()})
    assert found == beginnings
