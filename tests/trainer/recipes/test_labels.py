"""Sets whose answer is one of a list of labels."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.recipes.test_recipes import FILES, rows_of, write


def test_clinc_adds_the_rows_out_of_scope(tmp_path: Path) -> None:
    found = rows_of("clinc150", write(tmp_path, FILES["clinc150"]), "validation")
    assert {row["response"] for row in found} == {"pay_bill", "oos"}
    assert found[0]["labels"] == ["oos", "pay_bill"]
