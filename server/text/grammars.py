"""What outputs are to look like, as grammars in the form that the engine follows: llguidance's dialect of Lark.

``grammar_of`` writes the text of a grammar whose ``start`` is the whole output; whether it compiles is another matter,
see ``server.text.grammar_maker``. Functions raise InvalidRequestError, naming the field, for what is no such form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from server.errors import InvalidRequestError
from server.text.json_schemas import with_unknown_formats_left_out
from server.text.structural_tags import structural_tag

MAX_CHARS = 1 << 18  # of a grammar
MAX_CHOICES = 4096
# A text is then what the model makes of it, token by token, and not cut into tokens for it.
HEADER = '%llguidance {"no_forcing": true}\n'
# Where JSON may have white space, a model that has lost its way writes nothing else: no more than a pretty printer's.
WHITESPACE = r" |\r?\n[ \t]{0,64}"


class Kind(StrEnum):
    """What a form is given as."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"
    STRUCTURAL_TAG = "structural_tag"


class Form(msgspec.Struct, frozen=True):
    """What an output is to look like; ``field`` is what the client called it.

    ``value``: a JSON schema; a regular expression; texts to choose from; a grammar in Lark or GBNF; a structural tag.
    Of JSON, ``whitespace`` is what may stand between its parts, as a regular expression: None for nothing.
    """

    kind: Kind
    value: Any
    field: str
    whitespace: str | None = WHITESPACE

    @property
    def param(self) -> str:
        """The field of the body."""
        return re.split(r"[.\[]", self.field)[0]

    @property
    def of_message(self) -> bool:
        """Whether it says what a message is that is written, and nothing of calls in its place."""
        return self.param == "response_format"

    def refusal(self, problem: str, place: str = "") -> InvalidRequestError:
        """Why it cannot be followed, and where in it."""
        return self.said(f"{self.field}{place}: {problem}")

    def said(self, message: str) -> InvalidRequestError:
        """A ``refusal`` whose whole message is known."""
        return InvalidRequestError(message, param=self.param)


def json_object(field: str = "response_format") -> Form:
    """Any JSON object."""
    return Form(Kind.JSON_SCHEMA, {"type": "object"}, field)


def grammar_of(form: Form) -> str:
    """The grammar of a form. Raises InvalidRequestError. Takes a while for a long one."""
    try:
        text = HEADER + _WRITERS[form.kind](form)
        text.encode()
    except RecursionError:
        raise form.refusal("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise form.refusal("it holds half of a surrogate pair, which is no text") from None
    if len(text) > MAX_CHARS:
        raise form.refusal(f"it makes a grammar of {len(text)} characters; at most {MAX_CHARS} are served")
    return text


def literal(text: str) -> str:
    """``text`` as a part of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def inline_schema(schema: Mapping[str, Any] | bool, whitespace: str | None = WHITESPACE) -> str:
    """JSON of ``schema`` as a part of a Lark grammar."""
    known = with_unknown_formats_left_out(schema)
    options = {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
    fields = {} if known is True else known
    given = fields.get("x-guidance")
    options.update(given if isinstance(given, dict) else {})
    return "%json " + json.dumps({**fields, "x-guidance": options}, ensure_ascii=False)


def within(lead: str, grammar: str) -> str:
    """``lead``, which is what follows ``start:`` in Lark, with ``grammar`` where it says ``@inner``."""
    outer = {"lark_grammar": f"{HEADER}start: {lead}"}
    return json.dumps({"grammars": [outer, {"name": "inner", "lark_grammar": grammar}]})


def inline_regex(pattern: str) -> str:
    """A regular expression as a part of a Lark grammar, which has no lines in one."""
    escaped = re.sub(r"(\\.)|\n", _without_line, regex_to_lark(pattern, "d"), flags=re.DOTALL)
    return f"/{escaped}/"


def _without_line(found: re.Match[str]) -> str:
    return r"\n" if found[0] in ("\n", "\\\n") else found[0]


def _json_schema(form: Form) -> str:
    if not isinstance(form.value, dict | bool):
        raise form.refusal("a JSON schema is an object")
    if form.value is False:
        raise form.refusal("nothing is valid by this schema")
    return f"start: {inline_schema(form.value, form.whitespace)}"


def _regex(form: Form) -> str:
    return f"start: {inline_regex(_string(form))}"


def _choice(form: Form) -> str:
    texts = form.value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise form.refusal("must be a list of texts")
    if not 0 < len(texts) <= MAX_CHOICES:
        raise form.refusal(f"1 to {MAX_CHOICES} texts to choose from are needed")
    return "start: " + " | ".join(map(literal, texts))


def _grammar(form: Form) -> str:
    text = _string(form)
    if len(text) > MAX_CHARS:
        raise form.refusal(f"a grammar may have at most {MAX_CHARS} characters")
    if "::=" not in text:
        return text
    try:
        return str(any_to_lark(text))
    except RecursionError:
        raise
    except Exception as error:
        raise form.refusal(f"it cannot be read as GBNF: {error}") from error


def _tag(form: Form) -> str:
    value = form.value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise form.refusal("it is no JSON") from None
    try:
        return structural_tag(value, inline_schema, inline_regex)
    except ValueError as error:
        raise form.refusal(str(error)) from None


def _string(form: Form) -> str:
    if not isinstance(form.value, str):
        raise form.refusal("must be a text")
    return form.value


_WRITERS: Mapping[Kind, Callable[[Form], str]] = {
    Kind.JSON_SCHEMA: _json_schema,
    Kind.REGEX: _regex,
    Kind.CHOICE: _choice,
    Kind.GRAMMAR: _grammar,
    Kind.STRUCTURAL_TAG: _tag,
}
