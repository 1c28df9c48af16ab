"""A small fleet in SQLite, questions about it, and the reward: does the model's query give the right rows?

Run as a script it writes two files beside itself: answers.jsonl, a few questions with their queries, and
questions.jsonl, many without.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = "ships(name TEXT, port TEXT, crew INTEGER, built INTEGER)"
PORTS = ("Oslo", "Porto", "Gdansk", "Malmo", "Genoa")
NAMES = (
    "Aurora", "Borealis", "Castor", "Dorado", "Electra", "Fulmar", "Gannet", "Halcyon", "Iris", "Juno",
    "Kestrel", "Lyra", "Merlin", "Nimbus", "Osprey", "Pollux", "Quest", "Rigel", "Sirius", "Tern",
)  # fmt: skip
CREWS, YEARS = range(10, 50), range(1985, 2015)  # asked about
PROMPT = f"""\
Table: {SCHEMA}
Question: {{question}}
SQL:"""
ANSWERED, ASKED = 40, 160
RIGHT, RUNS, LOOKS = 1.0, 0.2, 0.05
_MAX_STEPS = 100_000  # of SQLite's virtual machine: a query that never ends is wrong
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}


def database() -> sqlite3.Connection:
    """The fleet in memory. Only reading is allowed: the queries are the model's."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE {SCHEMA}")
    draw = random.Random(7)
    rows = [(name, draw.choice(PORTS), draw.randrange(5, 60), draw.randrange(1980, 2020)) for name in NAMES]
    connection.executemany("INSERT INTO ships VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
    connection.set_progress_handler(lambda: 1, _MAX_STEPS)
    return connection


def execution(completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """1 for a query that gives the rows wanted, 0.2 for one that runs, 0.05 for a beginning, else 0."""
    connection = database()
    return [_reward(connection, text, row["sql"]) for text, row in zip(completions, rows, strict=True)]


def questions() -> list[dict[str, str]]:
    """Questions with their queries, none of which is among the answers."""
    return _rows()[ANSWERED:]


def answers() -> list[dict[str, str]]:
    """A few questions answered, to learn the form from."""
    return [{"prompt": row["prompt"], "response": f" {row['sql']}"} for row in _rows()[:ANSWERED]]


def _rows() -> list[dict[str, str]]:
    """All of them, each question once, in an order that never changes."""
    draw = random.Random(0)
    found: dict[str, str] = {}
    while len(found) < ANSWERED + ASKED:
        question, sql, values = draw.choice(_SHAPES)
        value = draw.choice(values)
        found[question.format(value)] = sql.format(value)
    return [{"prompt": PROMPT.format(question=question), "sql": sql} for question, sql in found.items()]


def _reward(connection: sqlite3.Connection, text: str, wanted: str) -> float:
    query = query_of(text)
    if not query.upper().startswith("SELECT"):
        return 0.0
    try:
        got = connection.execute(query).fetchall()
    except (sqlite3.Error, sqlite3.Warning):
        return LOOKS
    return RIGHT if sorted(got, key=repr) == sorted(connection.execute(wanted).fetchall(), key=repr) else RUNS


def query_of(text: str) -> str:
    """The first statement in an answer, with or without a code fence."""
    fenced = re.search(r"```(?:sql)?\s*(.*?)(?:```|$)", text, re.DOTALL | re.IGNORECASE)
    return (fenced[1] if fenced else text).strip().split(";")[0].split("\n\n")[0].strip()


# A question, its query, and what is drawn into both.
_SHAPES: tuple[tuple[str, str, Sequence[Any]], ...] = (
    ("Which ships are in {}?", "SELECT name FROM ships WHERE port = '{}'", PORTS),
    ("How many ships are in {}?", "SELECT COUNT(*) FROM ships WHERE port = '{}'", PORTS),
    ("Which ships have a crew of more than {}?", "SELECT name FROM ships WHERE crew > {}", CREWS),
    ("How many ships have a crew of less than {}?", "SELECT COUNT(*) FROM ships WHERE crew < {}", CREWS),
    ("How many ships were built before {}?", "SELECT COUNT(*) FROM ships WHERE built < {}", YEARS),
    ("Which ships were built after {}?", "SELECT name FROM ships WHERE built > {}", YEARS),
    ("In which port is {}?", "SELECT port FROM ships WHERE name = '{}'", NAMES),
    ("How large is the crew of {}?", "SELECT crew FROM ships WHERE name = '{}'", NAMES),
    ("When was {} built?", "SELECT built FROM ships WHERE name = '{}'", NAMES),
)


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).with_name("answers.jsonl"), answers())
    write(Path(__file__).with_name("questions.jsonl"), questions())
