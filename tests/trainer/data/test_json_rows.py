"""JSON files to rows: an array, an object with one, objects one after the other, of any length; and what is broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.data.test_rows import CHINESE, error_of, rows_of, values_of
from tests.trainer.support import write_jsonl


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_may_be_an_array_or_an_object_with_one_among_other_keys(
    tmp_path: Path, mark: str, indent: int | None
) -> None:
    path = tmp_path / "a.json"
    path.write_text(mark + json.dumps(CHINESE, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert values_of(path) == CHINESE
    whole = {"version": [1, {"a": "]"}], "train": CHINESE, "validation": CHINESE[:1]}
    path.write_text(mark + json.dumps(whole, indent=indent), encoding="utf-8")
    assert values_of(path) == CHINESE
    assert [row.values for row in rows_of(path, split="validation")] == CHINESE[:1]
    path.write_text(mark + json.dumps({"data": []}, indent=indent), encoding="utf-8")
    assert "is empty: it holds no rows" in error_of(path)


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.json", CHINESE)
    assert values_of(path) == CHINESE
    assert (
        values_of(write_jsonl(path, [{"data": [1], "prompt": "x"}, {"data": [2], "prompt": "y"}]))[1]["prompt"] == "y"
    )
    assert values_of(write_jsonl(path, [CHINESE[0]])) == CHINESE[:1]


def test_the_first_of_the_objects_in_a_json_file_may_be_of_any_length(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": "word " * 230_000}, {"text": "b", "rows": [1]}, {"text": "c"}]
    path = write_jsonl(tmp_path / "a.json", rows)
    assert values_of(path) == rows
    assert [row.where for row in rows_of(path)] == [f"{path} line {line}" for line in (1, 2, 3)]
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert values_of(packed) == rows
    whole = {"version": "word " * 230_000, "data": rows}
    path.write_text(json.dumps(whole))
    assert values_of(path) == rows


def test_objects_may_stand_one_after_the_other_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in CHINESE), encoding="utf-8")
    assert values_of(path) == CHINESE
    assert [row.where for row in rows_of(path)] == [f"{path} line 1", f"{path} line 5"]
    assert "line 6 is not valid JSON: Expecting value" in error_of(path, b'{\n"a": 1\n}\n{\n"a": 2,\n"b": }')
    assert "line 5 is not a JSON object" in error_of(path, b'{\n"a": 1\n}\n{"a": 2}\n3')


def test_json_longer_than_what_is_read_at_a_time_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"n": i, "text": '字\\"\n\u2028' * (i % 7), "deep": [{"x": [i, -1.5e-3, None, True]}]} for i in range(200)]
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps({"n": 12345, "rows": rows, "after": 1}, indent=indent), encoding="utf-8")
        for chunk in (1, 2, 3, 7, 64):
            monkeypatch.setattr("trainer.data.json_rows._CHUNK", chunk)
            assert values_of(path, "json") == rows
            where = rows_of(path, "json")[150].where
            assert where.startswith(f"{path} row 151 (line ")
            line = int(where.rsplit(" ", 1)[1].rstrip(")"))
            assert path.read_text(encoding="utf-8").split("\n")[line - 1].strip(" ").startswith("{")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n {"a": tru}]', "line 2 is not valid JSON"),
        ('[{"a": 1}\n {"a": 2}]', "line 2 is not valid JSON: ',' is expected, not '{'"),
        ('[{"a": 1},\n {"a": "x', "line 2 is not valid JSON: Unterminated string"),
        ('[{"a": 1},\n', "is not valid JSON"),
        ('[{"a": 1},\n 3]', "row 2 (line 2) is not a JSON object"),
        ('[{"a": 1}]\n[]', "line 2 is not valid JSON: '[' after the end of the data"),
        ("hello", "line 1 is not valid JSON: neither an array nor an object"),
        ('{"questions": [{"a": 1}],\n "version": 1}', "has no list of rows under any of data, train, rows"),
        ("", "is empty: it holds no rows"),
        ("[]", "is empty: it holds no rows"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_broken_json_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_of(tmp_path / "a.json", text.encode())
