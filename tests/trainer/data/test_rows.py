from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.trainer.support import write_jsonl
from trainer.data.rows import read_data_file
from trainer.errors import DataError

COLUMNS = ["prompt", "response"]
GOOD = '{"prompt": "a", "response": "b"}'


def error_of(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_data_file(path, "auto", COLUMNS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_jsonl_rows_know_their_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, "", '{"prompt": "c\\u2028", "response": "d", "more": 1}'])
    file = read_data_file(path, "auto", COLUMNS)
    assert [(row.line, row.values["prompt"]) for row in file.rows] == [(1, "a"), (3, "c\u2028")]
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_csv_cells_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffprompt,response\r\n"a, ""x""\ny",b\r\nc,d\r\n'.encode())
    rows = read_data_file(path, "auto", COLUMNS).rows
    assert [row.values for row in rows] == [
        {"prompt": 'a, "x"\ny', "response": "b"},
        {"prompt": "c", "response": "d"},
    ]
    assert [row.line for row in rows] == [3, 4]


def test_the_format_may_be_said_where_the_name_does_not(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.txt", [GOOD])
    assert len(read_data_file(path, "jsonl", COLUMNS).rows) == 1
    assert "say which it is with data.format" in error_of(path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b"", "is empty: it holds no rows"),
        ("a.jsonl", b"\n \n", "is empty: it holds no rows"),
        ("a.csv", b"", "is empty: it holds no rows"),
        ("a.csv", b"prompt,response\n", "is empty: it holds no rows"),
        ("a.jsonl", f"{GOOD}\n{{broken\n".encode(), "line 2 is not valid JSON: Expecting property name"),
        ("a.jsonl", f"[{GOOD},\n{GOOD}]".encode(), "one JSON object a line is expected, not one array"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1"),
        ("a.jsonl", f"{GOOD}\n3\n".encode(), "line 2 is not a JSON object"),
        ("a.jsonl", f'{GOOD}\n{{"prompt": "a", "answer": 1}}\n'.encode(), "line 2 has no column 'response' (found: "),
        ("a.jsonl", GOOD.encode() + b"\n\xff\xfe\n", "line 2 is not UTF-8: byte 0xff at offset 33"),
        ("a.csv", b"prompt,response\ncaf\xe9,b\n", "line 2 is not UTF-8: byte 0xe9 at offset 19"),
        ("a.csv", b"question,answer\na,b\n", "has no column 'prompt' (found: question, answer)"),
        ("a.csv", b"prompt,response\na\n", "line 2 has fewer cells than the 2 columns"),
        ("a.csv", b"prompt,response\na,b,c\n", "line 2 has more cells than the 2 columns"),
        ("a.csv", b'prompt,response\n"a,b\n', "is not valid CSV"),
        ("a.csv", b"prompt,response,prompt\na,b,c\n", "names a column twice"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    assert words in error_of(tmp_path / name, data)


def test_missing_files_and_folders_are_said_so(tmp_path: Path) -> None:
    assert "there is no data file" in error_of(tmp_path / "none.jsonl")
    assert "cannot be read" in error_of(tmp_path)
