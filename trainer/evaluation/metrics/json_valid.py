"""The share of answers that are one JSON value (RFC 8259) and nothing else."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from trainer.evaluation.metrics.base import Case, mean_metric


class NotJson(Exception):  # noqa: N818  (an outcome that is counted)
    """A text is no JSON value."""


def parse_json(text: str) -> Any:
    """The value in ``text``. Raises NotJson; NaN and Infinity, which Python would take, are not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJson from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def is_json(case: Case) -> float:
    """1 where the answer is JSON, else 0."""
    try:
        parse_json(case.answer)
    except NotJson:
        return 0.0
    return 1.0


JSON_VALID = mean_metric("json_valid", "answers that are one valid JSON value", is_json)
