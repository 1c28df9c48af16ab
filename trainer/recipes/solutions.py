"""Sets whose answer can be checked: SQL (sqlqa, geography), a number (gsm8k), Python (humaneval, nothing to train on).

``geography`` splits by question (other wordings and names of queries seen in training), ``geography_query`` by query
(whole queries are held back), both as published. A solution of gsm8k ends with ``#### `` and the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.recipes.recipe import Recipe, Row, Split, hold_back, json_of, jsonl_of, malformed, shuffled


def _read_sqlqa(folder: Path, split: Split) -> Iterator[Row]:
    rows = list(jsonl_of(folder / "sqlqa.jsonl", "question", "context", "answer"))
    for row in hold_back(rows, split):
        yield {"prompt": f"{row['context']}\n{row['question']}", "response": row["answer"]}


SQLQA = Recipe(
    "sqlqa", "a question and a table to SQL between [SQL] and [/SQL]", _read_sqlqa, ("train", "test"),
    ("sql_exact", "exact_match"), added_tokens=("[SQL]", "[/SQL]"),
)  # fmt: skip
_GEOGRAPHY_INSTRUCTION = "Answer with a SQL query: "
_GEOGRAPHY_NAMES = {"train": "train", "validation": "dev", "test": "test"}
_SQLITE = "*.sqlite"


def _read_geography(folder: Path, split: Split, *, by_query: bool) -> Iterator[Row]:
    file = folder / "geography.json"
    content = json_of(file)
    databases = sorted(folder.glob(_SQLITE))
    if len(databases) != 1:
        raise DataError(f"{folder} must hold one {_SQLITE} file to run queries on, not {len(databases)}")
    rows = []
    try:
        for query in content:
            for sentence in query["sentences"]:
                if _GEOGRAPHY_NAMES[split] == (query["query-split"] if by_query else sentence["question-split"]):
                    rows.append({**_filled_query(query, sentence), "sqlite": str(databases[0])})
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise malformed(file) from error
    return iter(shuffled(rows))


def _filled_query(query: dict[str, Any], sentence: dict[str, Any]) -> Row:
    """Question and its first SQL with the variables' values. One that the sentence leaves empty has its example."""
    examples = {variable["name"]: variable["example"] for variable in query["variables"]}
    values = {**examples, **{name: value for name, value in sentence["variables"].items() if value}}
    text, sql = sentence["text"], query["sql"][0]
    for name in sorted(values, key=len, reverse=True):  # name1 must not be found in name10
        text, sql = text.replace(name, values[name]), sql.replace(name, values[name])
    return {"prompt": _GEOGRAPHY_INSTRUCTION + text, "response": sql}


GEOGRAPHY, GEOGRAPHY_QUERY = (
    Recipe(
        name, f"questions on US geography to SQL with its database; split by {name.partition('_')[2] or 'question'}",
        partial(_read_geography, by_query=by_query), ("train", "validation", "test"), ("sql_execution", "sql_exact"),
    )
    for name, by_query in (("geography", False), ("geography_query", True))
)  # fmt: skip


def _read_gsm8k(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / f"{split}.jsonl"
    for number, row in enumerate(jsonl_of(file, "question", "answer"), 1):
        _solution, mark, answer = row["answer"].rpartition("#### ")
        if not mark:
            raise DataError(f"{file} row {number}: the answer does not end with '#### ' and a number")
        yield {"prompt": row["question"], "response": row["answer"], "answer": answer.strip().replace(",", "")}


GSM8K = Recipe("gsm8k", "grade-school mathematics", _read_gsm8k, ("train", "test"), ("gsm8k_accuracy",))


def _read_humaneval(folder: Path, _split: Split) -> Iterator[Row]:
    for row in jsonl_of(folder / "HumanEval.jsonl.gz", "prompt", "canonical_solution", "entry_point", "test"):
        yield {
            "prompt": row["prompt"],
            "response": row["canonical_solution"],
            "entry_point": row["entry_point"],
            "test": row["test"],
        }


HUMANEVAL = Recipe(
    "humaneval", "Python functions to complete (a probe, test only)", _read_humaneval, ("test",), ("perplexity",)
)
