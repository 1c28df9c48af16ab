"""Shares of SQL answers that are right, by their text or by their result.

``sql_exact``: the answer is the reference query, but for white space, case outside of literals, and a final semicolon.

``sql_execution``: its execution gives what the reference's does (execution accuracy, as in Spider's test-suite
evaluation, Zhong et al. 2020, on one database). Rows of the result are compared as a multiset, in order only where the
reference says ORDER BY. The database is the SQLite file named by the row's column ``sqlite``; it is opened read-only,
and a query may neither write, attach files nor run longer than its limits. Rows whose reference itself does not run are
left out and counted.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from trainer.errors import EvaluationError
from trainer.evaluation.metrics.metric import Array, Case, Metric, as_statistics, mean_metric, ratio

_MARKS = re.compile(r"\[/?SQL\]|^\s*```(?:sql)?|```\s*$", re.IGNORECASE)
_LITERAL = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")""")


def query_of(text: str) -> str:
    """The query in an answer: without ``[SQL]`` marks, code fences and the final semicolon."""
    return _MARKS.sub("", text).strip().rstrip(";").strip()


def normalized(text: str) -> str:
    """``text``'s query in the form in which queries are compared."""
    parts = _LITERAL.split(query_of(text))
    return "".join(part if i % 2 else _plain(part) for i, part in enumerate(parts)).strip()


def _plain(sql: str) -> str:
    spaced = re.sub(r"\s*([(),=<>!*+/-]+)\s*", r" \1 ", sql)
    return re.sub(r"\s+", " ", spaced).lower()


def is_same_query(case: Case) -> float:
    """1 where both queries read the same, else 0."""
    return float(normalized(case.answer) == normalized(case.reference))


SQL_EXACT = mean_metric("sql_exact", "queries equal to the reference, case and spacing aside", is_same_query)
DATABASE_COLUMN = "sqlite"
SECONDS, ROWS, VALUE_BYTES = 5.0, 20_000, 1_000_000
_STEPS_BETWEEN_LOOKS = 10_000  # of SQLite's virtual machine: well below a millisecond
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)
_INSIDE = re.compile(r"'(?:[^']|'')*'|\([^()]*\)")
Result = list[tuple[Any, ...]]


class QueryFailed(Exception):  # noqa: N818  (an outcome that is counted)
    """A query does not run, or not within its limits."""


def execute(database: Path, query: str) -> Result:
    """The rows that ``query`` gives on ``database``. Raises QueryFailed, and EvaluationError for no database."""
    if not database.is_file():
        raise EvaluationError(f"there is no SQLite file {database}, which sql_execution needs")
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)
        connection.text_factory = lambda value: value.decode("utf-8", "replace")
        connection.set_authorizer(_authorize)
        deadline = time.monotonic() + SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
        try:
            cursor = connection.execute(query)
            rows = cursor.fetchmany(ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise QueryFailed(str(error)) from error
    if cursor.description is None:  # nothing, or a comment: SQLite takes both
        raise QueryFailed("it is no query")
    if len(rows) > ROWS:
        raise QueryFailed(f"more than {ROWS} rows")
    return rows


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def same_result(found: Result, wanted: Result, query: str) -> bool:
    """Whether two results are the same, given the reference ``query``."""
    return found == wanted if is_ordered(query) else Counter(found) == Counter(wanted)


def is_ordered(query: str) -> bool:
    """Whether the outermost SELECT of ``query`` says ORDER BY."""
    before = ""
    while before != query:
        before, query = query, _INSIDE.sub(" ", query)
    return bool(_ORDERED.search(query))


def _score(case: Case) -> tuple[float, float] | None:
    database = case.row.get(DATABASE_COLUMN)
    if not isinstance(database, str):
        raise EvaluationError(
            f"sql_execution needs the SQLite file to run queries on in the column {DATABASE_COLUMN!r} of every row"
        )
    gold = query_of(case.reference)
    try:
        wanted = execute(Path(database), gold)
    except QueryFailed:
        return None
    try:
        return float(same_result(execute(Path(database), query_of(case.answer)), wanted, gold)), 1.0
    except QueryFailed:
        return 0.0, 1.0


def _statistics(cases: Sequence[Case]) -> Array:
    return as_statistics([_score(case) for case in cases], width=2)


SQL_EXECUTION = Metric(
    "sql_execution",
    "queries whose result on the SQLite file is the reference's",
    _statistics,
    ratio,
    excluded="the reference query itself does not run",
)
