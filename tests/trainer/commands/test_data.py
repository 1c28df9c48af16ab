from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factory import make_base
from tests.trainer.preference.support import judged_rows, pair_rows
from tests.trainer.support import colour_rows, write_jsonl
from trainer.commands.data import main
from trainer.commands.train import train
from trainer.recipes import RECIPES


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hotswap.cli import main\n"
        "for argv in (['--help'], ['check', '--help'], ['recipes']):\n"
        "    try:\n"
        "        main(['data', *argv])\n"
        "    except SystemExit as done:\n"
        "        assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'rich', 'httpx', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: hotswap data check" in done.stdout


def test_a_file_or_a_configuration_is_checked(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows())
    assert main(["check", str(data), f"base={tiny_base}", "--validation", "8"]) == 0
    out = capsys.readouterr().out
    assert "40 examples to train on, 8 to validate on" in out
    assert "this data can be trained on" in out
    config = tmp_path / "run.yaml"
    config.write_text(f"base: {tiny_base}\ndata: {{path: {data}, validation: 8}}\n", encoding="utf-8")
    assert main(["check", str(config)]) == 0
    assert capsys.readouterr().out == out


def test_the_report_is_had_as_json(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*colour_rows(), {"prompt": "x", "response": ""}])
    assert main(["check", str(data), f"base={tiny_base}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"] == {"empty response": {"count": 1, "first": [f"{data} line 49"]}}
    assert report["error"] is None
    assert report["lengths"]["max"] > report["learned_lengths"]["max"] == 3


def test_what_cannot_be_trained_on_exits_with_1(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"base={tiny_base}"
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "p" * 99, "response": "r"}] * 4)
    assert main(["check", str(long), base, "max_length=50"]) == 1
    out = capsys.readouterr().out
    assert "dropped: 4 rows longer than data.max_length 50" in out
    assert "error: " in out
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [{"text_a": "x", "text_b": "y"}])
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"prompt": "x", "response": "y"}, "{"])
    for file, words, more in (
        (wrong, "line 1 has columns of no known shape", []),
        (broken, "line 2 is not valid JSON", []),
        (long, "line 1 has no column 'chosen'", ["preference=dpo"]),
    ):
        assert main(["check", str(file), base, *more]) == 1
        err = capsys.readouterr().err
        assert err.startswith("hotswap: ")
        assert words in err
        assert err.count("\n") == 1


def test_a_preview_that_is_piped_has_marks_for_colours(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows())
    assert main(["preview", str(data), f"base={tiny_base}", "validation=0", "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"--- {data} line 1: ")
    assert "«rr<|im_end|>»" in out
    assert out.count("---") == 2
    assert main(["preview", str(data), f"base={tiny_base}", "--color", "always", "--ids", "-n", "1"]) == 0
    assert "\x1b[32m" in capsys.readouterr().out


def test_all_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in RECIPES)
    assert "added tokens [SQL] [/SQL]" in out


def test_wrong_usage_exits_with_2() -> None:
    for argv in ([], ["chek"], ["check"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2


def test_preferences_are_counted_and_shown(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = {"prompt": "x", "chosen": "y", "rejected": "y"}
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [same, *pair_rows(10)])
    options = [f"base={tiny_base}", "preference=dpo", "validation=2"]
    assert main(["check", str(pairs), *options]) == 0
    out = capsys.readouterr().out
    assert "dpo: 8 rows to train on, 8 chosen, 8 rejected; 2 to validate on" in out
    assert "dropped: 1 row chosen and rejected are the same" in out
    assert "--- chosen: " in out
    assert main(["check", str(pairs), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["train"], report["validation"], report["answer_counts"]) == (8, 2, {"chosen": 8, "rejected": 8})
    assert main(["preview", str(pairs), *options, "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("--- chosen: ") == out.count("--- rejected: ") == 2
    judged = write_jsonl(tmp_path / "judged.jsonl", judged_rows(10))
    assert main(["check", str(judged), f"base={tiny_base}", "preference=kto", "validation=2"]) == 0
    assert " bad, " in capsys.readouterr().out


def test_a_check_ends_with_a_row_as_the_model_sees_it(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "2024", colour_rows())
    assert main(["check", str(data), f"base={tiny_base}", "format=jsonl"]) == 0
    assert "«rr<|im_end|>»" in capsys.readouterr().out


LONG = "long " * 40
ROW, PAIR = {"prompt": "red", "response": "rr"}, {"prompt": "red", "chosen": "rr", "rejected": "x"}
GOOD = {"prompt": "red", "completion": "rr", "label": True}


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([GOOD] * 9, ["preference=kto"], "kto needs both good and bad answers; all labels are the same"),
        (
            [{**GOOD, "label": i > 0} for i in range(9)],
            ["preference=kto", "validation=8"],
            "the same but for rows",
        ),
        ([{"text": "word " * 99}] * 9, [], "the longest row has 496 tokens, and the base has 256 positions"),
        ([{"text": "word"}] * 9, ["preference=dpo"], "line 1 has no column 'chosen'"),
        ([{**PAIR, "prompt": LONG * 2}] * 9, ["preference=dpo"], "data.max_length: the longest row has 4"),
        ([ROW] * 9, ["validation=LONG", "max_length=100"], "long.jsonl leaves nothing to validate on: 1 row: longer"),
        ([ROW, *[{**ROW, "prompt": LONG}] * 8], ["max_length=100"], "data.jsonl leaves nothing to validate on: 1 row"),
        ([PAIR] * 9, ["preference=dpo", "validation=LONG", "max_length=100"], "leaves nothing to validate on: 1 row"),
        ([ROW] * 9, ["validation=9"], "data.validation wants 9 of 9 usable rows"),
        ([{"messages": [{"role": "usr", "content": "x"}]}] * 9, [], "line 1: 'messages': message 0: the role 'usr'"),
    ],
)
def test_training_refuses_what_a_check_refuses_in_the_same_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], settings: list[str], words: str
) -> None:
    base = make_base(tmp_path / "base", max_position_embeddings=256)
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    held = write_jsonl(tmp_path / "long.jsonl", [{**ROW, **PAIR, "prompt": LONG}])
    given = dict(option.replace("LONG", str(held)).split("=") for option in ["validation=1", *settings])
    options = [f"base={base}", *(f"{key}={value}" for key, value in given.items())]
    assert main(["check", str(data), *options]) == 1
    out, err = capsys.readouterr()
    (refusal,) = [line for line in (out + err).splitlines() if line.startswith(("error: ", "hotswap: "))]
    assert words in refusal
    assert train([f"data={data}", f"output={tmp_path / 'run'}", "max_steps=1", "batch_size=4", *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1].partition(": ")[2] == refusal.partition(": ")[2]


def test_texts_are_split_where_the_base_ends_in_a_check_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base", max_position_embeddings=256)
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": "word " * 99}] * 9)
    options = [f"base={base}", "too_long=split", "validation=1"]
    assert main(["check", str(data), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["longest"] <= 256
    assert train([f"data={data}", f"output={tmp_path / 'run'}", "max_steps=1", *options]) == 0
    assert "16 rows to train, 2 to validate" in capsys.readouterr().err


def test_the_columns_that_are_read_are_printed(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "pairs.csv"
    with cells.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "prompt", "system", "chosen", "rejected"])
        for i in range(4):
            asked = {"role": "user", "content": f"q{i}"}
            chats = ([asked, {"role": "assistant", "content": text}] for text in ("good", "bad"))
            out.writerow([i, json.dumps([asked]), "Be brief.", *map(json.dumps, chats)])
    assert main(["check", str(cells), f"base={tiny_base}", "preference=dpo", "validation=1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("columns read: system, prompt, chosen, rejected; not read: id\n")
    assert (
        shown.count("Be brief.<|im_end|>\n<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n«good<|im_end|>»") == 1
    )


def test_plain_text_is_checked_and_shown_for_a_base_without_a_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"document {i}"} for i in range(4)])
    for what in ("check", "preview"):
        assert main([what, str(data), f"base={base}", "validation=1"]) == 0
        assert "«ocument 1<|im_end|>»" in capsys.readouterr().out.replace("«ocument 0", "«ocument 1")
