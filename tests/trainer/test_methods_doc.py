"""docs/training/methods.md says what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bases.names import QUANTIZATIONS
from trainer.config.methods import METHODS

DOC = Path(__file__).parents[2] / "docs" / "training" / "methods.md"


def rows() -> dict[str, list[str]]:
    _, _, rest = DOC.read_text(encoding="utf-8").partition("<!-- table -->\n")
    table, _, _ = rest.partition("<!-- /table -->")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row for row in cells}


def test_the_table_names_every_method_with_its_keys_preset_and_bases() -> None:
    found = rows()
    assert list(found) == list(METHODS)
    for name, struct in METHODS.items():
        made: Any = struct()
        _, keys, rate, bases, holds = found[name]
        assert keys.replace("`", "").split(", ") == (list(struct.__struct_fields__) or ["none"])
        assert rate == f"{made.default_learning_rate:g}"
        assert bases == ("all" if struct.QUANTIZED == QUANTIZATIONS else ", ".join(struct.QUANTIZED))
        assert holds
