"""Moments in requests: Unix seconds, or ISO 8601, which is UTC where it does not say otherwise."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator


def read_moment(value: Any) -> Any:
    """``value`` as Unix seconds. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be Unix seconds, or a time such as 2030-01-31T12:00:00Z")
    try:
        seconds = float(value)
    except ValueError:
        seconds = _iso(str(value))
    if not 0 <= seconds < 253402300800:  # the year 10000
        raise ValueError("must lie between 1970 and 9999")
    return seconds


def _iso(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError("must be Unix seconds, or a time such as 2030-01-31T12:00:00Z") from error
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


Moment = Annotated[float, BeforeValidator(read_moment)]
