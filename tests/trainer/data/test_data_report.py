"""The report against what training loads, and against counts made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.shared_data import SHARED, needs
from tests.trainer.support import make_config, write_jsonl
from trainer.base_model import load_vocabulary
from trainer.data.data_report import DataReport, check_data_set, report_text
from trainer.data.encoding import IGNORED
from trainer.data.token_statistics import vocabulary_use
from trainer.data.training_data import load_data
from trainer.errors import DataError


def row(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": prompt, "response": response}


def checked(folder: Path, base: Path, rows: Sequence[Any], *settings: str) -> DataReport:
    """The report, which must agree with what training loads."""
    config = make_config(folder, base, "template=none", *settings, rows=list(rows))
    vocabulary = load_vocabulary(config)
    report = check_data_set(config, *vocabulary)
    if report.error:
        with pytest.raises(DataError, match="leaves nothing to learn from"):
            load_data(config.data, *vocabulary, config.training.seed)
        return report
    loaded = load_data(config.data, *vocabulary, config.training.seed)
    assert (report.train, report.validation) == (len(loaded.train), len(loaded.validation))
    assert {reason: found.count for reason, found in report.dropped.items()} == loaded.dropped
    assert {key: found.count for key, found in report.cut.items()} == loaded.cut
    assert report.notes == list(loaded.notes)
    labels = [label for example in [*loaded.train, *loaded.validation] for label in example.labels]
    assert report.vocabulary.tokens == len(labels)
    if not report.dropped and not report.cut:
        assert report.learned == pytest.approx(sum(label != IGNORED for label in labels) / len(labels), abs=1e-4)
    return report


ROWS = [row("a" * (10 + i), "b" * (i % 4 + 1)) for i in range(20)]


def test_lengths_by_hand(tiny_base: Path, tmp_path: Path) -> None:
    """One token a byte, and one that ends the response."""
    report = checked(tmp_path, tiny_base, ROWS)
    assert report.error is None
    assert (report.rows, report.train, report.validation) == (20, 12, 8)
    assert report.read_lengths is not None
    assert (report.read_lengths.min, report.read_lengths.max, report.read_lengths.mean) == (10, 29, 19.5)
    assert report.learned_lengths is not None
    assert (report.learned_lengths.min, report.learned_lengths.max, report.learned_lengths.mean) == (2, 5, 3.5)
    assert report.lengths is not None
    assert report.lengths.max == 29 + 4 + 1
    assert report.learned == pytest.approx(70 / (70 + 390), abs=1e-4)
    assert report.suggested_max_length == 64


def test_dropped_and_cut_rows_are_named_with_their_lines(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS, row(" ", "x"), row("x", ""), row("x", ""), row("x" * 200, "y")]
    report = checked(tmp_path, tiny_base, rows, "max_length=100")
    file = tmp_path / "data.jsonl"
    assert report.dropped["empty prompt"].first == [f"{file} line 21"]
    assert report.dropped["empty response"].first == [f"{file} line 22", f"{file} line 23"]
    assert report.dropped["longer than data.max_length 100"].first == [f"{file} line 24"]
    assert report.lengths is not None
    assert report.lengths.max == 202  # what was dropped for its length is measured
    assert report.current_limit is not None
    assert report.current_limit.rows_longer == 1
    assert "dropped: 2 rows empty response (data.jsonl line 22, data.jsonl line 23)" in report_text(report)


def test_responses_that_are_cut_before_their_end(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS, row("x", "y" * 300)]
    report = checked(tmp_path, tiny_base, rows, "max_length=100", "too_long=cut_end", "validation=0", "eval_steps=null")
    assert report.cut["max_length"].first == [f"{tmp_path / 'data.jsonl'} line 21"]
    assert report.unfinished.first == report.cut["max_length"].first
    assert "1 row end without a token that ends the turn" in report_text(report)


def test_repeated_ambiguous_and_overlapping_rows(tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0], ROWS[3], row("same", "one"), row("same", "two")]
    held = write_jsonl(tmp_path / "held.jsonl", [ROWS[5], row("new", "x")])
    report = checked(tmp_path, tiny_base, rows, f"validation={held}")
    file = tmp_path / "data.jsonl"
    assert report.repeated.first == [f"{file} line 21", f"{file} line 22"]
    assert report.ambiguous == 2
    assert report.overlapping.first == [f"{held} line 1"]
    assert (report.train, report.validation) == (24, 2)
    dropping = checked(tmp_path, tiny_base, rows, f"validation={held}", "duplicates=drop", "max_rows=10")
    assert (dropping.train, dropping.left_out) == (10, 14)


def test_far_longer_rows_stand_out(tiny_base: Path, tmp_path: Path) -> None:
    report = checked(tmp_path, tiny_base, [*ROWS, row("x" * 400, "y"), *ROWS], "validation=0", "eval_steps=null")
    assert report.outliers.first == [f"{tmp_path / 'data.jsonl'} line 21 (402 tokens)"]
    assert report.outliers.count == 1


def test_a_script_that_the_base_hardly_knows(tiny_base: Path, tmp_path: Path) -> None:
    report = checked(tmp_path, tiny_base, [row("灯不亮", "灯") for _ in range(20)])
    assert report.vocabulary.byte_pieces == pytest.approx(12 / 13, abs=1e-3)
    assert "92% of the tokens are parts of one character" in report_text(report)
    assert checked(tmp_path / "b", tiny_base, ROWS).vocabulary.byte_pieces == 0


def test_unknown_tokens_are_counted() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "<0x0A>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    use = vocabulary_use({0: 1, 1: 2, 2: 1}, tokenizer)
    assert (use.tokens, use.different, use.unknown, use.byte_pieces) == (4, 3, 0.25, 0.25)


def test_data_that_leaves_nothing_is_reported_with_the_reason(tiny_base: Path, tmp_path: Path) -> None:
    report = checked(tmp_path, tiny_base, [row("x" * 50, "y")] * 9, "max_length=20")
    assert report.train == 0
    assert report.error is not None
    assert "9 rows: longer than data.max_length 20" in report.error
    assert report_text(report).endswith(f"error: {report.error}")


def test_conversations_count_what_every_answer_learns(tiny_base: Path, tmp_path: Path) -> None:
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "and"), ("assistant", "no")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 12
    report = checked(tmp_path, tiny_base, rows, "template=chat")
    assert report.learned_lengths is not None
    assert report.learned_lengths.max == len("yes") + 1 + len("no") + 1


@needs("chatglm_spo")
def test_chinese_reports_on_a_byte_level_base(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, f"data.path={SHARED / 'chatglm_spo'}", "data.recipe=chatglm_spo")
    report = check_data_set(config, *load_vocabulary(config))
    assert report.rows == 1441
    assert report.dropped["empty response"].count == 22
    assert report.vocabulary.byte_pieces > 0.5


def test_empty_answers_and_the_longest_row_are_found(tiny_base: Path, tmp_path: Path) -> None:
    turns = [("user", "hi"), ("assistant", ""), ("user", "and"), ("assistant", "no")]
    empty = {"messages": [{"role": role, "content": text} for role, text in turns]}
    full = {"messages": empty["messages"][2:]}
    report = checked(tmp_path, tiny_base, [full, *[empty] * 3, full] * 3, "template=chat")
    assert report.empty_answers.count == 9
    file = tmp_path / "data.jsonl"
    assert report.empty_answers.first == [f"{file} line {line}" for line in (2, 3, 4, 7, 8)]
    assert "9 rows have empty answers, which are not learned (data.jsonl line 2, " in report_text(report)
    assert report.lengths is not None
    assert report.longest == report.lengths.max


def test_text_of_one_token_is_dropped_as_training_drops_it(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"text": "<|im_end|>"}, *({"text": f"row {i}"} for i in range(20))]
    for too_long in ("drop", "split"):
        report = checked(tmp_path, tiny_base, rows, "template=chat", f"too_long={too_long}")
        assert sum(found.count for found in report.dropped.values()) == 1
