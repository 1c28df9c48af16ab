from __future__ import annotations

from tests.server.model.families.catalog import FAMILIES
from tests.server.model.families.table import KINDS, PAGE, families_listed, render


def test_the_page_lists_exactly_the_tested_families() -> None:
    assert families_listed(PAGE.read_text()) == list(FAMILIES), "run: make families"


def test_the_page_is_what_the_script_writes() -> None:
    """All but the figures, which differ from machine to machine."""
    blank = render({name: {} for name in FAMILIES}).splitlines()
    for line, written in zip(blank, PAGE.read_text().splitlines(), strict=True):
        if line.startswith("| ") and "–" in line:
            assert len(written.split("|")) == len(KINDS) + 4
        else:
            assert line == written, "run: make families"
