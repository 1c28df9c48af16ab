from __future__ import annotations

from typing import Any

from server.text.json_schemas import Schema, find_fault, with_unknown_formats_left_out, written

BAD: dict[str, Any] = {"bad": True}


def problem_of(schema: Schema) -> str:
    """As a compiler: one problem, wherever in the schema it is."""
    return "bad" if "'bad'" in str(schema) else ""


def test_the_place_of_a_fault() -> None:
    deep = {"properties": {"a": {"anyOf": [{"type": "string"}, {"items": [1, BAD]}]}, "b": {}}}
    assert written(find_fault(deep, "bad", problem_of)) == ".properties.a.anyOf[1].items[1]"
    assert find_fault(BAD, "bad", problem_of) == ()
    assert find_fault({"patternProperties": {"^x": BAD}}, "bad", problem_of) == ("patternProperties", "^x")


def test_a_fault_behind_a_reference_is_where_that_leads() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/$defs/X"}},
        "$defs": {"X": {"items": BAD}, "loop": {"$ref": "#/$defs/loop"}},
    }
    assert written(find_fault(schema, "bad", problem_of)).endswith("$defs.X.items")


def test_formats_that_say_nothing_are_left_out_where_they_are_formats() -> None:
    schema = {
        "format": "binary",
        "properties": {"format": {"format": "email"}, "b": {"anyOf": [{"format": "path"}, True]}},
        "enum": [{"format": "binary"}],
    }
    found = with_unknown_formats_left_out(schema)
    assert found == {
        "properties": {"format": {"format": "email"}, "b": {"anyOf": [{}, True]}},
        "enum": [{"format": "binary"}],
    }
    assert schema["format"] == "binary"
