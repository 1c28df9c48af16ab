"""Preference data counted, measured, and shown as the model sees it."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.preference.support import pair_rows, preference_config
from trainer.data.encoding import IGNORED, Example
from trainer.preference.preference_data import JudgedIds, PairIds, PreferenceData, PromptIds
from trainer.preference.preference_report import check_preferences, examples_of, report_lines


def test_a_report_counts_rows_and_answers_and_measures_them(tmp_path: Path) -> None:
    config = preference_config(tmp_path, tmp_path, "kto", rows=pair_rows(2))
    train = [
        JudgedIds([1] * 3, [2] * 5, good=True),
        JudgedIds([1] * 5, [2], good=False),
        JudgedIds([1], [2] * 3, good=True),
    ]
    data = PreferenceData(train, train[:1], "0" * 64, {"empty prompt": 2, "empty response": 1})
    report = check_preferences(config, data)
    assert (report.kind, report.train, report.validation) == ("kto", 3, 1)
    assert report.answer_counts == {"good": 2, "bad": 1}
    assert (report.prompts.min, report.prompts.max) == (1, 5)
    assert (report.answers["good"].min, report.answers["good"].max) == (3, 5)
    text = "\n".join(report_lines(report)).splitlines()
    assert text[:3] == [
        "kto: 3 rows to train on, 1 bad, 2 good; 1 to validate on",
        "dropped: 2 rows empty prompt",
        "dropped: 1 row empty response",
    ]
    assert text[4].split() == ["tokens", "min", "median", "mean", "p95", "max"]
    assert text[5].split() == ["prompt", "1", "3", "3.0", "5", "5"]
    assert [line.split()[0] for line in text[6:]] == ["bad", "good"]


def test_a_row_is_its_prompt_with_each_of_its_answers() -> None:
    assert examples_of(PairIds([1, 2], [3], [4, 5])) == {
        "chosen": Example((1, 2, 3), (IGNORED, IGNORED, 3)),
        "rejected": Example((1, 2, 4, 5), (IGNORED, IGNORED, 4, 5)),
    }
    assert examples_of(PromptIds([1, 2], {})) == {"prompt": Example((1, 2), (IGNORED, IGNORED))}
