"""The rows that a preference run held back, as questions: none that it trained on, and the preferred answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.preference.support import judged_rows, pair_rows, preference_config
from tests.trainer.support import write_jsonl
from trainer.base_model import load_vocabulary
from trainer.config.loading import dump_config
from trainer.config.schema import TrainConfig
from trainer.errors import DataError
from trainer.evaluation.rows import RowSource, load_rows
from trainer.preference.preference_data import load_preference_data

LONG = "long " * 40


def config_file(folder: Path, config: TrainConfig) -> Path:
    path = folder / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_they_are_those_that_training_held_back(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        {**row, "prompt": f"{i} {row['prompt']}"}
        for i, row in enumerate((pair_rows if kind == "dpo" else judged_rows)())
    ]
    rows[3]["prompt"] = rows[11]["prompt"] = rows[17]["prompt"] = LONG  # dropped, before rows are held back
    config = preference_config(tmp_path, tiny_base, kind, "max_length=80", "max_prompt_length=null", rows=rows)
    data = load_preference_data(config, *load_vocabulary(config))
    assert data.dropped == {"longer than data.max_length 80": 3}
    questions = load_rows(RowSource(config=config_file(tmp_path, config))).questions
    tokenizer, _ = load_vocabulary(config)
    held = {tokenizer.decode(row.prompt) for row in data.validation}
    trained = {tokenizer.decode(row.prompt) for row in data.train}
    for question in questions:
        assert question.messages is not None
        rendered = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in question.messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert rendered in held - trained
    answers = {row["prompt"]: row.get("chosen") or row["completion"] for row in rows if row.get("label", True)}
    assert all(answers[q.messages[-1].content] == q.reference for q in questions if q.messages)
    good = [row for row in data.validation if "bad" not in row.answers]
    assert len(questions) == len(good) > 0


def test_another_file_holds_prompts_and_responses(tiny_base: Path, tmp_path: Path) -> None:
    config = preference_config(tmp_path, tiny_base, "dpo", rows=pair_rows())
    file = config_file(tmp_path, config)
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "red", "response": "rr"}])
    questions = load_rows(RowSource(config=file, data=other)).questions
    assert [question.reference for question in questions] == ["rr"]


def test_a_test_file_of_pairs(tiny_base: Path, tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "test.jsonl", pair_rows(3))
    config = preference_config(tmp_path, tiny_base, "dpo", f"data.test={pairs}", rows=pair_rows())
    questions = load_rows(RowSource(config=config_file(tmp_path, config), split="test")).questions
    assert [question.reference for question in questions] == [row["chosen"] for row in pair_rows(3)]


def test_a_validation_file_is_asked_without_the_rows_to_train_on(tiny_base: Path, tmp_path: Path) -> None:
    own = write_jsonl(tmp_path / "own.jsonl", pair_rows(3))
    config = preference_config(tmp_path, tiny_base, "dpo", f"data.validation={own}", rows=["not JSON"])
    questions = load_rows(RowSource(config=config_file(tmp_path, config))).questions
    assert [question.reference for question in questions] == [row["chosen"] for row in pair_rows(3)]


def test_grpo_has_no_answers_to_compare_with(tiny_base: Path, tmp_path: Path) -> None:
    options = (
        "preference.reward=tests/trainer/preference/rewards.py:letter_share",
        "eval_steps=null",
        "num_generations=4",
    )
    config = preference_config(tmp_path, tiny_base, "grpo", *options, rows=[{"prompt": "a"}] * 9)
    with pytest.raises(DataError, match="a grpo run have no answers to compare with; name others with --data FILE"):
        load_rows(RowSource(config=config_file(tmp_path, config)))
