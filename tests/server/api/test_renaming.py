from __future__ import annotations

import pytest

from server.api.renaming import renamed
from server.errors import InvalidRequestError

NAMES = {"messages": "input", "stop": "stop_sequences", "form.inner": "text", "form": "text"}


@pytest.mark.parametrize(
    ("message", "param", "told", "named"),
    [
        ("messages[3].role: no", "messages[3].role", "input[3].role: no", "input"),
        ("stop: too many", "stop", "stop_sequences: too many", "stop_sequences"),
        ("at most 4 stop strings", "stop", "at most 4 stop strings", "stop_sequences"),
        ("reduce the messages", "messages", "reduce the input", "input"),
        ("stop_token_ids: no", "stop_token_ids", "stop_token_ids: no", "stop_token_ids"),
        ("form.inner.a: no", "form.inner.a", "text.a: no", "text.a"),
        ("form.b: no", "form.b", "text.b: no", "text.b"),
        ("tools[0].function.name: no", "tools[0].function.name", "tools[0].name: no", "tools[0].name"),
        ("something", None, "something", None),
    ],
)
def test_errors_name_the_fields_of_the_dialect(message: str, param: str | None, told: str, named: str | None) -> None:
    error = renamed(InvalidRequestError(message, param=param, code="x"), NAMES)
    assert (str(error), error.param, error.code) == (told, named, "x")
