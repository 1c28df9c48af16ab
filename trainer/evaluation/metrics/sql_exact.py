"""The share of SQL answers that are the reference query, but for white space, case outside of literals, and a final
semicolon."""

from __future__ import annotations

import re

from trainer.evaluation.metrics.base import Case, mean_metric

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
