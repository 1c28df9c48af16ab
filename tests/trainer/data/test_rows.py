"""Files to rows: every format, packed or not, and one clear line for each that is broken."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.support import write_jsonl
from trainer.config.data import Format
from trainer.data.rows import RawRow, read_rows
from trainer.data.sources import FileSource
from trainer.errors import DataError

GOOD = '{"prompt": "a", "response": "b"}'
PACKED = gzip.compress(GOOD.encode() * 99, mtime=0)  # or every worker would name the test otherwise
CHINESE = [{"prompt": "请把“你好”译成英文", "response": "Hello，你好！"}, {"prompt": "１＋１＝？", "response": "２"}]

GBK = "prompt,response\n你好吗,很好\n".encode("gbk")


def rows_of(path: Path, data_format: Format = "auto", split: str | None = None) -> list[RawRow]:
    return list(FileSource(str(path), [path], data_format, split).rows())


def values_of(path: Path, data_format: Format = "auto") -> list[dict[str, Any]]:
    return [row.values for row in rows_of(path, data_format)]


def error_of(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` in the format that the name of ``path`` says."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    names = list(rows[0])
    separator = "\t" if kind == "tsv" else ","
    texts = {
        "jsonl": lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": lambda: json.dumps(rows, ensure_ascii=False, indent=2),
        "csv": lambda: "".join(separator.join(map(str, row)) + "\r\n" for row in [names, *(r.values() for r in rows)]),
    }
    data = texts["csv" if kind == "tsv" else kind]().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    written = write(tmp_path / name.replace("ndjson", "jsonl"), CHINESE)
    written.rename(tmp_path / name)
    assert values_of(tmp_path / name) == CHINESE


def test_jsonl_rows_know_their_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, "", '{"prompt": "c\\u2028", "response": "d", "more": 1}'])
    assert [(row.where, row.values["prompt"]) for row in rows_of(path)] == [
        (f"{path} line 1", "a"),
        (f"{path} line 3", "c\u2028"),
    ]


def test_csv_cells_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffprompt,response\r\n"a, ""x""\ny",b\r\nc,d\r\n'.encode())
    assert values_of(path) == [{"prompt": 'a, "x"\ny', "response": "b"}, {"prompt": "c", "response": "d"}]
    assert [row.where for row in rows_of(path)] == [f"{path} line 3", f"{path} line 4"]


def test_the_format_may_be_said_where_the_name_does_not(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.txt", [GOOD])
    assert len(rows_of(path, "jsonl")) == 1
    assert "say which it is with data.format" in error_of(path)


@pytest.mark.parametrize(
    ("data_format", "documents"),
    [
        ("auto", ["One.", "still one, {1}.", "Two."]),
        ("txt", ["One.", "still one, {1}.", "Two."]),
        ("txt_paragraphs", ["One.\nstill one, {1}.", "Two."]),
        ("txt_file", ["\nOne.\nstill one, {1}.\n \n\nTwo.\n"]),
    ],
)
def test_documents_of_a_text_file(tmp_path: Path, data_format: Format, documents: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\r\nOne.\r\nstill one, {1}.\r\n \n\nTwo.\n")
    assert values_of(path, data_format) == [{"text": text} for text in documents]
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert values_of(packed, data_format) == values_of(path, data_format)
    assert [row.where for row in rows_of(path, "txt")] == [f"{path} line {number}" for number in (2, 3, 6)]
    assert "is empty: it holds no rows" in error_of(path, b" \n\n")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b"", "is empty: it holds no rows"),
        ("a.jsonl", b"\n \n", "is empty: it holds no rows"),
        ("a.csv", b"", "is empty: it holds no rows"),
        ("a.csv", b"prompt,response\n", "is empty: it holds no rows"),
        ("a.jsonl", f"{GOOD}\n{{broken\n".encode(), "line 2 is not valid JSON: Expecting property name"),
        ("a.jsonl", f"[{GOOD},\n{GOOD}]".encode(), "one JSON object a line is expected; for one array set data.format"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1"),
        ("a.jsonl", f"{GOOD}\n3\n".encode(), "line 2 is not a JSON object"),
        ("a.jsonl", GOOD.encode() + b"\n\xff\xfe\n", "line 2 is not UTF-8: byte 0xff at offset 33"),
        ("a.jsonl", b"\xef\xbb\xbf" + GOOD.encode() + b"\n\xff\n", "line 2 is not UTF-8: byte 0xff at offset 36"),
        ("a.csv", b"prompt,response\ncaf\xe9,b\n", "line 2 is not UTF-8: byte 0xe9 at offset 19; save the file"),
        ("a.csv", GBK, "line 2 is not UTF-8: byte 0xc4 at offset 16; it looks like GBK; convert it: iconv -f GB18030"),
        ("a.jsonl", (GOOD + "\n").encode("utf-16"), "is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8"),
        ("a.json", f"[{GOOD}]".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("a.csv", "prompt,response\n你好吗,很好\n".encode("utf-16-le"), "is UTF-16, not UTF-8"),
        ("a.csv", b"prompt,response\na\n", "line 2 has fewer cells than the 2 columns"),
        ("a.csv", b"prompt,response\na,b,c\n", "line 2 has more cells than the 2 columns"),
        ("a.csv", b'prompt,response\n"a,b\n', "is not valid CSV"),
        ("a.csv", b"prompt,response,prompt\na,b,c\n", "names a column twice"),
        ("a.jsonl.gz", b"not packed", "cannot be unpacked: it is no whole gzip file"),
        ("a.jsonl.gz", PACKED[:-20], "cannot be unpacked: it is no whole gzip file"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.jsonl", GOOD.encode() + b'\n{"prompt": "hi \\ud83d"}\n', "line 2 holds half of a character"),
        ("a.json", b'[{"prompt": "x"},\n{"prompt": "hi \\uD83D!"}]', "line 2 holds half of a character"),
        ("a.jsonl", GOOD.encode() + b'\n{"n": ' + b"1" * 5000 + b"}\n", "line 2 holds a number of too many digits"),
        ("a.json", b'[{"n": ' + b"1" * 5000 + b"}]", "line 1 holds a number of too many digits"),
    ],
)  # fmt: skip
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    assert words in error_of(tmp_path / name, data)


@pytest.mark.parametrize("text", [
    "-DOCSTART- -X- -X- O\n\nAda NNP B-NP B-PER\n# # O O\n\n\nhi UH O O",
    "# id 1f3b domain=en\nAda\tB-PER\n#\tO\n\t\n# text = hi\nhi\tO\n",
])  # fmt: skip
def test_words_and_tags_in_columns(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.conll"
    file.write_text(text)
    rows = list(read_rows(file))
    assert [row.values for row in rows] == [
        {"tokens": ["Ada", "#"], "tags": ["B-PER", "O"]},
        {"tokens": ["hi"], "tags": ["O"]},
    ]
    assert rows[0].where == f"{file} line {text[: text.index('Ada')].count(chr(10)) + 1}"
    file.write_text("Ada B-PER\nLovelace\n")
    with pytest.raises(DataError, match="line 2 has no tag: a word and its tag are expected"):
        list(read_rows(file))


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.csv", "none.parquet", "none.jsonl.gz"])
def test_missing_files_are_said_so(tmp_path: Path, name: str) -> None:
    assert "there is no data file" in error_of(tmp_path / name)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", CHINESE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'hotswap[parquet]'" in error_of(path)


def test_parquet_rows_keep_lists_and_nulls(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "问"}], "note": None},
        {"messages": [], "note": "x"},
    ]
    path = write(tmp_path / "a.parquet", rows)
    assert values_of(path) == rows
    assert [row.where for row in read_rows(path)] == [f"{path} row 1", f"{path} row 2"]


def test_parquet_structs_gain_no_nulls(tmp_path: Path) -> None:
    def call(**arguments: Any) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}

    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "x"}, call(city="x", days=[1, None])], "note": None},
        {"messages": [call(limit={"below": 1})], "note": {"a": 1}, "tools": [{"properties": {"x": {"type": "y"}}}]},
        {"messages": [call()], "note": {"b": 2}, "tools": [{"properties": {"z": {"default": None}}}]},
    ]
    for row in rows:
        row.setdefault("tools", None)
    path = write(tmp_path / "a.parquet", rows)
    assert values_of(path) == rows


def test_nulls_that_are_the_data_s_own_stay(tmp_path: Path) -> None:
    rows = [{"tools": [{"a": {"default": None}}, None], "call": {"limit": None}}]
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert values_of(write(tmp_path / name, rows)) == rows
    pairs = pa.array([[("a", None), ("b", 1)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"map": pairs, "text": ['{"a": null}']}), tmp_path / "b.parquet")
    assert values_of(tmp_path / "b.parquet") == [{"map": {"a": None, "b": 1}, "text": '{"a": null}'}]


def test_whole_characters_written_as_escapes_are_read(tmp_path: Path) -> None:
    text = '{"prompt": "hi \\ud83d\\ude00 \\\\ud83d"}\n'
    (tmp_path / "a.jsonl").write_text(text)
    assert values_of(tmp_path / "a.jsonl") == [{"prompt": "hi \U0001f600 \\ud83d"}]
