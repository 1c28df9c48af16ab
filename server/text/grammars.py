"""What outputs are to look like, as grammars in the form that the engine follows: llguidance's dialect of Lark.

Every function returns the text of a grammar whose ``start`` is the whole output, and raises InvalidRequestError, naming
the field and the place in it, for what is no grammar or takes too much. They may take a tenth of a second: call them
off the event loop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from server.engine.grammar_compiler import LIMITS
from server.errors import InvalidRequestError

MAX_CHARS = 1 << 18  # of a grammar
MAX_CHOICES = 4096
# A text is then what the model makes of it, token by token, and not cut into tokens for it.
_HEADER = '%llguidance {"no_forcing": true}\n'

Schema = Mapping[str, Any] | bool


def json_schema(schema: Schema, field: str = "json_schema") -> str:
    """JSON that fits ``schema``, of the keywords that a grammar can express: others are refused."""
    return checked(f"start: %json {_dumped(schema, field)}", field)


def json_object(field: str = "response_format") -> str:
    """Any JSON object."""
    return json_schema({"type": "object"}, field)


def regex(pattern: str, field: str = "regex") -> str:
    """A text that ``pattern`` matches from end to end."""
    return checked(f"start: /{_on_one_line(regex_to_lark(_text(pattern, field), 'd'))}/", field)


def choice(texts: Sequence[str], field: str = "choice") -> str:
    """One of ``texts``."""
    if not 0 < len(texts) <= MAX_CHOICES:
        raise InvalidRequestError(f"{field}: 1 to {MAX_CHOICES} texts to choose from are needed", param=field)
    return checked("start: " + " | ".join(literal(text, field) for text in texts), field)


def lark(grammar: str, field: str = "grammar") -> str:
    """A text that a grammar in llguidance's Lark derives from ``start``."""
    return checked(grammar, field)


def literal(text: str, field: str = "grammar") -> str:
    """``text`` as a part of a Lark grammar."""
    return json.dumps(_text(text, field), ensure_ascii=False)


def inline_schema(schema: Schema, field: str = "json_schema") -> str:
    """JSON of ``schema`` as a part of a Lark grammar."""
    return f"%json {_dumped(schema, field)}"


def checked(grammar: str, field: str) -> str:
    """``grammar`` ready for the engine, if it compiles."""
    text = _HEADER + _text(grammar, field)
    if len(text) > MAX_CHARS:
        raise InvalidRequestError(f"{field}: a grammar may have at most {MAX_CHARS} characters", param=field)
    if problem := LLMatcher.validate_grammar(text, limits=LIMITS):
        raise InvalidRequestError(f"{field}: {_in_words(problem)}", param=field)
    return text


def _text(value: str, field: str) -> str:
    """``value``, if it can be written: JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{field}: it holds half of a surrogate pair, which is no text", param=field
        ) from None
    return value


def _dumped(schema: Schema, field: str) -> str:
    try:
        return _text(json.dumps(schema, ensure_ascii=False), field)
    except RecursionError:
        raise InvalidRequestError(f"{field}: the schema is nested too deeply", param=field) from None


def _on_one_line(pattern: str) -> str:
    """A regular expression without line breaks of its own."""
    return re.sub(r"\\?\n", lambda _: r"\n", re.sub(r"\\\\", r"\\x5c", pattern))


def _in_words(problem: str) -> str:
    """What llguidance says in one sentence: it repeats the grammar behind its first line, and the reason at the end."""
    first, *rest = problem.strip().splitlines()
    first = re.sub(r"^at \d+\(\d+\): ", "", first)
    details = [line.strip() for line in rest if not re.match(r"\s+\d+ \||\s+\^", line)]
    return "; ".join(dict.fromkeys([first, *[line for line in details if line and line not in first]]))[:500]
