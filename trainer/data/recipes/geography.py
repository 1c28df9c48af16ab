"""Questions on the geography of the USA to SQL, with the database to run it on.

``geography`` splits by question (other wordings and names of queries seen in training), ``geography_query`` by query
(whole queries are held back), both as published.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import json_of, malformed, shuffled
from trainer.errors import DataError

_INSTRUCTION = "Answer with a SQL query: "
_NAMES = {"train": "train", "validation": "dev", "test": "test"}
_SQLITE = "*.sqlite"


def _rows(folder: Path, split: Split, *, by_query: bool) -> Iterator[Row]:
    file = folder / "geography.json"
    content = json_of(file)
    databases = sorted(folder.glob(_SQLITE))
    if len(databases) != 1:
        raise DataError(f"{folder} must hold one {_SQLITE} file to run queries on, not {len(databases)}")
    rows = []
    try:
        for query in content:
            for sentence in query["sentences"]:
                if _NAMES[split] == (query["query-split"] if by_query else sentence["question-split"]):
                    rows.append({**_filled(query, sentence), "sqlite": str(databases[0])})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise malformed(file) from error
    return iter(shuffled(rows))


def _filled(query: dict[str, Any], sentence: dict[str, Any]) -> Row:
    """Question and its first SQL with the variables' values. One that the sentence leaves empty has its example."""
    examples = {variable["name"]: variable["example"] for variable in query["variables"]}
    values = {**examples, **{name: value for name, value in sentence["variables"].items() if value}}
    text, sql = sentence["text"], query["sql"][0]
    for name in sorted(values, key=len, reverse=True):  # name1 must not be found in name10
        text, sql = text.replace(name, values[name]), sql.replace(name, values[name])
    return {"prompt": _INSTRUCTION + text, "response": sql}


GEOGRAPHY, GEOGRAPHY_QUERY = (
    Recipe(
        name, f"questions on US geography to SQL with its database; split by {name.partition('_')[2] or 'question'}",
        partial(_rows, by_query=by_query), ("train", "validation", "test"), ("sql_execution", "sql_exact"),
    )
    for name, by_query in (("geography", False), ("geography_query", True))
)  # fmt: skip
