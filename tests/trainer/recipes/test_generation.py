"""Sets whose answer is free text."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.recipes.test_recipes import FILES, TOOLS, lines, rows_of, write


def test_e2e_rows_know_all_references_of_their_attributes(tmp_path: Path) -> None:
    found = rows_of("e2e_nlg", write(tmp_path, FILES["e2e_nlg"]))
    assert len(found) == 2
    assert all(row["references"] == ["A is a place.", "There is A."] for row in found)


def test_toolcall_keeps_turns_and_functions_for_the_template_to_write(tmp_path: Path) -> None:
    (found,) = rows_of("toolcall", write(tmp_path, FILES["toolcall"]))
    assert found == {"messages": TOOLS[0]["conversations"], "tools": "[{}]"}


def test_advertisegen_with_its_training_file_tests_on_all_of_dev(tmp_path: Path) -> None:
    write(tmp_path, FILES["advertisegen"])
    write(tmp_path, {"train.json": lines({"content": "类型#裤", "summary": "一条裤子。"})})
    assert rows_of("advertisegen", tmp_path)[0]["prompt"] == "类型#裤"
    assert rows_of("advertisegen", tmp_path, "test")[0]["prompt"] == "类型#裙"
