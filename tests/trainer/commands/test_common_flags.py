from __future__ import annotations

import pytest

from trainer.commands.common import split_flags

OWN = {"--resume": False, "--nproc": True, "-h": False}


def split(line: str) -> tuple[list[str], list[str]]:
    return split_flags(line.split(), OWN, lambda key: key == "bf16")


@pytest.mark.parametrize(
    ("line", "own", "settings"),
    [
        ("c.yaml a=1 b.c=2", ["c.yaml"], ["a=1", "b.c=2"]),
        ("--a 1 --b=2 c.yaml", ["c.yaml"], ["a=1", "b=2"]),
        ("--warmup-steps 3", [], ["warmup_steps=3"]),
        ("--max_steps -1", [], ["max_steps=-1"]),
        ("--resume c.yaml --nproc 2 --nproc=3", ["--resume", "c.yaml", "--nproc", "2", "--nproc=3"], []),
        ("--bf16 c.yaml", ["c.yaml"], ["bf16=true"]),
        ("--bf16 false c.yaml", ["c.yaml"], ["bf16=false"]),
        ("--bf16 --a 1", [], ["bf16=true", "a=1"]),
        ("c.yaml --unknown", ["c.yaml"], ["unknown=true"]),
        ("--targets q_proj v_proj --a 1", [], ["targets=[q_proj, v_proj]", "a=1"]),
        ("--a 1 b=2", [], ["a=1", "b=2"]),
        ("--prompt x=y", [], ["prompt=x=y"]),
        ("-h", ["-h"], []),
    ],
)
def test_switches_and_settings_are_told_apart(line: str, own: list[str], settings: list[str]) -> None:
    assert split(line) == (own, settings)
