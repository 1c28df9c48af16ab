"""The fields of a body that say what an output is to look like, by the names that several servers have for them.

OpenAI's ``response_format``; vLLM's ``structured_outputs`` and ``guided_*``; llama.cpp's ``grammar`` and
``json_schema``; SGLang's ``regex`` and ``ebnf``. All come to one ``Form``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from pydantic import BaseModel

from adapters.quoting import quote
from server.errors import InvalidRequestError
from server.text.grammars import Form, Kind, json_object

_KINDS = {
    "json": Kind.JSON_SCHEMA,
    "regex": Kind.REGEX,
    "choice": Kind.CHOICE,
    "grammar": Kind.GRAMMAR,
    "structural_tag": Kind.STRUCTURAL_TAG,
}
_ALONE = {
    "json_schema": Kind.JSON_SCHEMA,
    "regex": Kind.REGEX,
    "ebnf": Kind.GRAMMAR,
    "grammar": Kind.GRAMMAR,
    "structural_tag": Kind.STRUCTURAL_TAG,
}
_NOTHING: tuple[Any, ...] = (None, False, "", {}, [])
_TYPES = "text, json_object, json_schema, structural_tag, grammar, regex"


class FormFields(BaseModel):
    """The fields. What is empty asks for nothing."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_decoding: dict[str, Any] | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[Any] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_structural_tag: dict[str, Any] | str | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: Any = None  # there is one
    structural_tag: dict[str, Any] | str | None = None
    json_schema: dict[str, Any] | str | None = None
    grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None

    def form(self) -> Form | None:
        """What is asked for; None for any text. Raises InvalidRequestError, also for more than one."""
        forms = list(self._forms())
        if len(forms) > 1:
            one, other = forms[0], forms[1]
            raise InvalidRequestError(
                f"`{one.field}` and `{other.field}` both say what the output is to look like; leave one of them out",
                param=other.param,
            )
        return forms[0] if forms else None

    def _forms(self) -> Iterator[Form]:
        if (found := _response_format(self.response_format or {})) is not None:
            yield found
        for field in ("structured_outputs", "guided_decoding"):
            yield from _grouped(field, getattr(self, field) or {})
        prefixed = {name: getattr(self, f"guided_{name}") for name in (*_KINDS, "json_object", "whitespace_pattern")}
        yield from _grouped("guided_", prefixed, joint="")
        for field, kind in _ALONE.items():
            if (value := getattr(self, field)) not in _NOTHING:
                yield _form(kind, value, field)


def _response_format(given: Mapping[str, Any]) -> Form | None:
    asked = {name: value for name, value in given.items() if value not in _NOTHING}
    kind = asked.pop("type", None)
    match kind:
        case None | "text" if not asked:
            return None
        case "json_object":
            schema = asked.get("schema")
            return json_object() if schema is None else _form(Kind.JSON_SCHEMA, schema, "response_format.schema")
        case "json_schema":
            return _named_schema(given.get("json_schema", given))
        case "structural_tag":
            return Form(Kind.STRUCTURAL_TAG, dict(given), "response_format")
        case "grammar" | "regex":
            value = next((asked[name] for name in (kind, "value", "pattern") if name in asked), None)
            return Form(_KINDS[kind], value, f"response_format.{kind}")
    raise InvalidRequestError(f"response_format: `type` must be one of {_TYPES}, alone", param="response_format")


def _named_schema(named: Any) -> Form:
    """OpenAI's ``json_schema``; ``strict`` or not, outputs follow it."""
    field = "response_format.json_schema"
    if not isinstance(named, dict):
        raise Form(Kind.JSON_SCHEMA, None, field).refusal("must be an object with a `schema`")
    for name, kind in (("name", str), ("strict", bool)):
        if not isinstance(named.get(name), kind | None):
            raise Form(Kind.JSON_SCHEMA, None, f"{field}.{name}").refusal(
                "must be a text" if kind is str else "must be true or false"
            )
    if named.get("schema") is None:
        raise Form(Kind.JSON_SCHEMA, None, f"{field}.schema").refusal("is missing")
    return _form(Kind.JSON_SCHEMA, named["schema"], f"{field}.schema")


def _grouped(field: str, given: Mapping[str, Any], joint: str = ".") -> Iterator[Form]:
    """The forms of an object that may hold one of several, with how to write JSON."""
    if given.get("disable_additional_properties"):
        raise InvalidRequestError(
            f"`{field}{joint}disable_additional_properties` is not supported: write `additionalProperties` into the "
            "schema",
            param=field.rstrip("_"),
        )
    style: dict[str, Any] = {}
    if (pattern := given.get("whitespace_pattern")) not in _NOTHING:
        if not isinstance(pattern, str):
            raise InvalidRequestError(f"{field}{joint}whitespace_pattern: must be a text", param=field)
        style = {"whitespace": pattern}
    if given.get("disable_any_whitespace"):
        style = {"whitespace": None}
    for name, kind in _KINDS.items():
        value = given.get(name)
        if value == "" and joint:
            raise Form(kind, value, f"{field}{joint}{name}").refusal("is empty; leave it out")
        if value not in _NOTHING or (value == [] and name == "choice") or (value == {} and name == "json"):
            yield msgspec.structs.replace(_form(kind, value, f"{field}{joint}{name}"), **style)
    if given.get("json_object"):
        yield msgspec.structs.replace(json_object(f"{field}{joint}json_object"), **style)


def _form(kind: Kind, value: Any, field: str) -> Form:
    """A form whose schema may have been sent as a text. Raises InvalidRequestError for a text that is no JSON."""
    form = Form(kind, value, field)
    if kind is not Kind.JSON_SCHEMA or not isinstance(value, str):
        return form
    try:
        return Form(kind, json.loads(value), field)
    except (ValueError, RecursionError):
        raise form.refusal(f"{quote(value)} is no JSON") from None
