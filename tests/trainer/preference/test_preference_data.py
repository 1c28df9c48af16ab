"""Rows of preference data in all their shapes, to token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bases.tool_text import template_tool
from tests.trainer.preference.support import pair_rows, preference_config
from tests.trainer.support import write_jsonl
from trainer.base_model import load_vocabulary
from trainer.config.data import Columns, DataConfig
from trainer.config.preference import PreferenceColumns
from trainer.errors import DataError
from trainer.preference.preference_data import (
    JudgedIds,
    PairIds,
    PreferenceData,
    PreferenceEncoder,
    columns_note,
    load_preference_data,
    load_preferences,
)

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}
PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "alpaca": {"instruction": "h", "input": "", "question": "-", "chosen": "yes", "rejected": "no"},
    "messages": {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "no"}]},
    "one message": {"messages": [USER], "chosen": ASSISTANT, "rejected": {"role": "assistant", "content": "no"}},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "without a prompt": {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "no"}]},
}
JUDGED: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "hi", "completion": "yes", "label": True},
    "messages": {"prompt": [USER], "completion": [ASSISTANT], "label": "True"},
    "conversation": {"messages": [USER, ASSISTANT], "label": 1},
}


def load(base: Path, folder: Path, rows: list[Any], kind: str = "pairs", **settings: Any) -> PreferenceData[Any]:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    path = write_jsonl(folder / "data.jsonl", rows)
    config = DataConfig(path=str(path), **{"validation": 0, **settings})
    tokens = PreferenceEncoder(config, PreferenceColumns(), tokenizer, [tokenizer.eos_token_id])
    return load_preferences(config, getattr(tokens, kind), 0)


def text(base: Path, ids: list[int]) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("shape", PAIRS)
def test_pairs_of_every_shape(tiny_base: Path, tmp_path: Path, shape: str) -> None:
    (pair,) = load(tiny_base, tmp_path, [PAIRS[shape]]).train
    assert isinstance(pair, PairIds)
    assert text(tiny_base, pair.prompt) == (PROMPT.replace("hi", "h") if shape == "alpaca" else PROMPT)
    assert text(tiny_base, pair.chosen) == "yes<|im_end|>"
    assert text(tiny_base, pair.rejected) == "no<|im_end|>"


@pytest.mark.parametrize("shape", JUDGED)
def test_judgements_of_every_shape(tiny_base: Path, tmp_path: Path, shape: str) -> None:
    (judged,) = load(tiny_base, tmp_path, [JUDGED[shape]], "judged").train
    assert isinstance(judged, JudgedIds)
    assert (text(tiny_base, judged.prompt), text(tiny_base, judged.completion)) == (PROMPT, "yes<|im_end|>")
    assert judged.good


def test_pairs_are_two_judgements_that_stay_together(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"hi{i}", "chosen": "yes", "rejected": "no"} for i in range(20)]
    data = load(tiny_base, tmp_path, rows, "judged", validation=5)
    assert [len(data.train), len(data.validation)] == [30, 10]
    assert not {tuple(row.prompt) for row in data.train} & {tuple(row.prompt) for row in data.validation}
    assert [row.good for row in data.validation] == [True, False] * 5


def test_earlier_answers_are_part_of_the_prompt(tiny_base: Path, tmp_path: Path) -> None:
    row = {"messages": [USER, ASSISTANT, {"role": "user", "content": "so?"}], "chosen": "good", "rejected": "bad"}
    (pair,) = load(tiny_base, tmp_path, [row], system_prompt="be brief").train
    wanted = (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(tiny_base, pair.prompt) == wanted
    assert text(tiny_base, pair.chosen) == "good<|im_end|>"


def test_messages_are_read_as_in_supervised_data(tiny_base: Path, tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    asked = {"role": None, "from": "human", "value": "hi"}
    (pair,) = load(
        tiny_base, tmp_path, [{"prompt": [asked], "chosen": call, "rejected": {**ASSISTANT, "weight": 0}}]
    ).train
    assert text(tiny_base, pair.prompt) == PROMPT
    assert text(tiny_base, pair.chosen) == '{"name": "f", "arguments": {}}<|im_end|>'
    assert text(tiny_base, pair.rejected) == "yes<|im_end|>"


def test_a_prompt_that_happens_to_be_json_stays_text(tiny_base: Path, tmp_path: Path) -> None:
    row = {"prompt": '[{"role": "user", "name": "x"}]', "chosen": "yes", "rejected": "no"}
    (pair,) = load(tiny_base, tmp_path, [row]).train
    assert text(tiny_base, pair.prompt) == PROMPT.replace("hi", row["prompt"])


def test_what_is_too_long_is_cut_alike_for_both_answers(tiny_base: Path, tmp_path: Path) -> None:
    row = {"prompt": "a" * 40, "chosen": "yes" * 10, "rejected": "n"}
    assert load(tiny_base, tmp_path, [row, PAIRS["texts"]], max_length=40).dropped == {
        "longer than data.max_length 40": 1
    }
    (start,) = load(tiny_base, tmp_path, [row], max_length=60, too_long="cut_start").train
    assert len(start.prompt) + len(start.chosen) == 60
    assert text(tiny_base, start.chosen) == "yes" * 10 + "<|im_end|>"
    (end,) = load(tiny_base, tmp_path, [row], max_length=70, too_long="cut_end").train
    assert len(end.prompt) + len(end.chosen) == 70
    assert text(tiny_base, end.rejected) == "n<|im_end|>"
    (parts,) = load(tiny_base, tmp_path, [row], max_prompt_length=30, max_response_length=6).train
    assert len(parts.prompt) == 30
    assert text(tiny_base, parts.chosen) == "yesyes"


def test_columns_may_have_other_names(tiny_base: Path, tmp_path: Path) -> None:
    row = {"q": "hi", "chosen": "yes", "rejected": "no"}
    (pair,) = load(tiny_base, tmp_path, [row], columns=Columns(prompt="q")).train
    assert text(tiny_base, pair.prompt) == PROMPT


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "hi", "chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
        ({"prompt": "hi", "chosen": "", "rejected": "no"}, "empty response"),
        ({"prompt": " ", "chosen": "yes", "rejected": "no"}, "empty prompt"),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [{"role": "user", "content": "other"}, ASSISTANT]},
            "chosen and rejected differ before the last answer",
        ),
    ],
)
def test_rows_that_say_nothing_are_counted(tiny_base: Path, tmp_path: Path, row: Any, reason: str) -> None:
    assert load(tiny_base, tmp_path, [row, PAIRS["texts"]]).dropped == {reason: 1}
    with pytest.raises(DataError, match=f"leaves nothing to learn from: 1 row: {reason}"):
        load(tiny_base, tmp_path, [row])


def test_answers_that_are_the_same_once_cut_say_nothing(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "common beginning x", "rejected": "common beginning y"}, *pair_rows(9)]
    data = load(tiny_base, tmp_path, rows, max_response_length=8, validation=2)
    assert data.dropped == {"chosen and rejected are the same, as far as they are not cut off": 1}
    assert len(data.train) + len(data.validation) == 9


def test_what_is_wrong_is_said_with_its_file_and_line(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.jsonl line 1 has no column 'rejected' \(found: prompt, chosen\)"):
        load(tiny_base, tmp_path, [{"prompt": "hi", "chosen": "yes"}])


def test_an_answer_that_is_a_call_is_written_by_the_template(tiny_base: Path, tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    template = (
        "{{ tools | tojson }}{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = {"prompt": [USER], "tools": [{"name": "f"}], "chosen": call, "rejected": "no"}
    (pair,) = load(tiny_base, tmp_path, [row], template=template).train
    tools = json.dumps([template_tool({"name": "f"})])
    assert text(tiny_base, pair.prompt) == f"{tools}<user>hi<|im_end|><assistant>"
    assert text(tiny_base, pair.chosen) == '{"name": "f", "arguments": {}}<|im_end|>'
    (prompt,) = load(tiny_base, tmp_path, [row], "prompts", tools="template", template=template).train
    assert prompt.prompt == pair.prompt


def test_columns_are_told_apart_by_whether_they_were_read(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"id": i, **row, "system": "s", "score": 1} for i, row in enumerate(pair_rows(8))]
    config = preference_config(tmp_path, tiny_base, "dpo", "validation=2", rows=rows)
    data = load_preference_data(config, *load_vocabulary(config))
    assert data.columns == ("system", "prompt", "chosen", "rejected")
    assert data.unread == ("id", "score")
    assert columns_note(data.columns, data.unread) == (
        "columns read: system, prompt, chosen, rejected; not read: id, score"
    )
