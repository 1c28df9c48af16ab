"""Sets whose answer is free text: advertisements (advertisegen), sentences (e2e_nlg), conversations (toolcall).

The published training file of advertisegen is large and often left away; without train.json the official development
rows are split. Without the training file of e2e_nlg (the cleaned set), devel is trained on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from trainer.recipes.recipe import Recipe, Row, Split, csv_of, hold_back, json_of, jsonl_of, malformed, shuffled


def _read_advertisegen(folder: Path, split: Split) -> Iterator[Row]:
    # some copies hold the official dev.json as dev0.json, beside a dev.json of a few rows
    train, dev = folder / "train.json", folder / "dev0.json"
    dev = dev if dev.exists() else folder / "dev.json"
    if train.exists():
        rows = jsonl_of(train if split == "train" else dev, "content", "summary")
    else:
        rows = hold_back(list(jsonl_of(dev, "content", "summary")), split)
    for row in rows:
        yield {"prompt": row["content"], "response": row["summary"]}


ADVERTISEGEN = Recipe(
    "advertisegen", "attributes of a garment to an advertisement, Chinese", _read_advertisegen, ("train", "test"),
    ("bleu4", "rouge1", "rouge2", "rougeL"),
)  # fmt: skip
_E2E_NLG_INSTRUCTION = "Describe this place in a sentence: "


def _read_e2e_nlg(folder: Path, split: Split) -> Iterator[Row]:
    train = folder / "train-fixed.no-ol.csv"
    devel = train if train.exists() else folder / "devel-fixed.no-ol.csv"
    rows = list(csv_of(devel if split == "train" else folder / "test-fixed.csv", "mr", "ref"))
    references = defaultdict(list)
    for row in rows:
        references[row["mr"]].append(row["ref"])
    for row in shuffled(rows):
        yield {"prompt": _E2E_NLG_INSTRUCTION + row["mr"], "response": row["ref"], "references": references[row["mr"]]}


E2E_NLG = Recipe(
    "e2e_nlg", "attributes of a restaurant to a sentence", _read_e2e_nlg, ("train", "test"),
    ("bleu4", "rouge1", "rouge2", "rougeL"),
)  # fmt: skip


def _read_toolcall(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / "glaive_toolcall_en_demo.json"
    try:
        rows = [{"messages": row["conversations"], "tools": row["tools"]} for row in json_of(file)]
    except (KeyError, TypeError) as error:
        raise malformed(file) from error
    return hold_back(rows, split)


TOOLCALL = Recipe(
    "toolcall", "conversations in which the assistant calls functions", _read_toolcall, ("train", "test"),
    ("rougeL", "exact_match"),
)  # fmt: skip
