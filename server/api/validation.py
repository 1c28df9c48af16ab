"""What pydantic found wrong, in plain sentences of ours.

Its own words are of inputs and of parsing, and may repeat what a client sent, at any length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from adapters.quoting import describe_error

Fault = Mapping[str, Any]  # pydantic's ErrorDetails, or FastAPI's, which are the same
MAX_PATH = 120  # characters of the name of a field

_SENTENCES = {
    "missing": "is missing",
    "bool": "must be true or false",
    "int": "must be an integer",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "string": "must be a text",
    "list": "must be a list",
    "dict": "must be an object",
    "model": "must be an object",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "extra_forbidden": "is no field here",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}
"""By pydantic's type of error, or by that without its last words: ``int`` for ``int_type``, ``int_parsing``, ..."""

_JSON_REASONS = {
    "number out of range": "a number has too many digits",
    "recursion limit": "it is nested too deeply",
}
_JSON_PLACE = re.compile(r"line \d+ column \d+")


def sentence(fault: Fault) -> str:
    """What is wrong, to stand behind the name of the field."""
    kind, context = fault["type"], {name: _whole(value) for name, value in (fault.get("ctx") or {}).items()}
    if kind == "value_error":  # a rule of ours, in our words
        return describe_error(context["error"])
    template = _SENTENCES.get(kind) or _SENTENCES.get(kind.partition("_")[0], "has a value that is not possible")
    return template.format_map(context)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def first_fault(error: ValidationError) -> tuple[str, str | None]:
    """The first fault of a body in one sentence, and the field it names."""
    faults: Sequence[Fault] = error.errors(include_url=False, include_input=False)
    place = faults[0]["loc"]
    # Of a field that may have several forms, the error deepest inside is that of the form the client meant.
    same_field = [fault for fault in faults if fault["loc"][:1] == place[:1]]
    param = max((_path(fault["loc"]) for fault in same_field), key=lambda path: len(path or ""))
    same_place = [fault for fault in same_field if _path(fault["loc"]) == param]
    of_its_type = [fault for fault in same_place if not fault["type"].endswith("_type")]
    first, *others = dict.fromkeys(map(sentence, of_its_type or same_place))
    message = " or ".join([first, *(text.removeprefix("must be ") for text in others)])
    if param is None and message.startswith("`"):  # a rule between fields names its field first
        return message, message.split("`")[1]
    return f"{param or 'body'}: {message}", param


def json_fault(error: ValidationError) -> str | None:
    """Why the body is no JSON; None if it is."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return json_sentence(fault["msg"]) if fault["type"] == "json_invalid" else None


def json_sentence(message: str) -> str:
    """What a parser of JSON says, in ours."""
    reason = next(
        (ours for theirs, ours in _JSON_REASONS.items() if theirs in message), "it breaks off or is malformed"
    )
    place = _JSON_PLACE.search(message)
    return f"the body is not valid JSON: {reason}" + (f" (at {place[0].replace(' col', ', col')})" if place else "")


def _path(loc: tuple[int | str, ...]) -> str | None:
    """``messages[0].content`` from pydantic's location; names of union members are left out."""
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool") and not part.endswith("Body"):
            out += f".{part}" if out else part
    return out[:MAX_PATH] or None
