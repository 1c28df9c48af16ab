from __future__ import annotations

from pathlib import Path

import pytest

from trainer.commands.common import split_flags

OWN = {"--again": False, "--nproc": True, "-h": False}


def split(line: str) -> tuple[list[str], list[str]]:
    return split_flags(line.split(), OWN, lambda key: key in ("bf16", "resume"), lambda key: key == "say")


@pytest.mark.parametrize(
    ("line", "own", "settings"),
    [
        ("c.yaml a=1 b.c=2", ["c.yaml"], ["a=1", "b.c=2"]),
        ("--a 1 --b=2 c.yaml", ["c.yaml"], ["a=1", "b=2"]),
        ("--warmup-steps 3", [], ["warmup_steps=3"]),
        ("--max_steps -1", [], ["max_steps=-1"]),
        ("--again c.yaml --nproc 2 --nproc=3", ["--again", "c.yaml", "--nproc", "2", "--nproc=3"], []),
        ("--again True --bf16 1 --nproc 1", ["--again", "--nproc", "1"], ["bf16=1"]),
        ("--again off c.yaml --again=no", ["c.yaml"], []),
        ("--bf16 No a=1 --bf16=0", [], ["bf16=No", "a=1", "bf16=0"]),
        ("--bf16 maybe --resume out/checkpoint-4 c.yml", ["c.yml"], ["bf16=maybe", "resume=out/checkpoint-4"]),
        ("--resume", [], ["resume=true"]),
        ("--resume a=1", [], ["resume=true", "a=1"]),
        ("--bf16 c.yaml", ["c.yaml"], ["bf16=true"]),
        ("--bf16 false c.yaml", ["c.yaml"], ["bf16=false"]),
        ("--bf16 --a 1", [], ["bf16=true", "a=1"]),
        ("c.yaml --unknown", ["c.yaml"], ["unknown=true"]),
        ("--targets q_proj v_proj --a 1", [], ["targets=[q_proj, v_proj]", "a=1"]),
        ("--a 1 b=2", [], ["a=1", "b=2"]),
        ("--rows [a, b] --bf16", [], ["rows=[a, b]", "bf16=true"]),
        ("--say be brief c.yaml", ["c.yaml"], ["say=be brief"]),
        ("--rows a,b.jsonl c:d 2", [], ['rows=["a,b.jsonl", "c:d", 2]']),
        ("--prompt x=y", [], ["prompt=x=y"]),
        ("-h", ["-h"], []),
    ],
)
def test_switches_and_settings_are_told_apart(line: str, own: list[str], settings: list[str]) -> None:
    assert split(line) == (own, settings)


def test_a_file_behind_a_switch_is_not_its_value(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert split(f"--bf16 {tmp_path}/rows.jsonl") == ([f"{tmp_path}/rows.jsonl"], ["bf16=true"])
    assert split(f"--bf16 {tmp_path}") == ([], [f"bf16={tmp_path}"])


def test_flags_may_be_written_with_either_dash() -> None:
    assert split_flags(["--n-per", "2", "--n_per=3"], {"--n_per": True}, bool) == (["--n_per", "2", "--n_per=3"], [])
