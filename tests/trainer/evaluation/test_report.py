from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.package.manifest import BaseRef, Manifest, encode_manifest
from tests.trainer.support import make_config, write_jsonl
from trainer.config.loading import dump_config
from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.metrics import METRICS, Case
from trainer.evaluation.report import lines, warnings
from trainer.evaluation.results import Evaluation, ScoredAnswer
from trainer.evaluation.rows import EvaluationRows, RowSource, load_rows
from trainer.evaluation.scoring import score_rows
from trainer.evaluation.suite import EvalReport
from trainer.evaluation.targets import ServeOptions, base_serve_options_of, find_target, serve_options_of


def report(answers: list[str], metric: str, finish_reason: str = "stop") -> EvalReport:
    score, statistics = score_rows(METRICS[metric], [Case(text, "1") for text in answers])
    found = Evaluation(
        "m",
        {metric: score},
        tuple(ScoredAnswer(text, finish_reason, {}) for text in answers),
        2.0,
        3.0,
        "r",
        {metric: statistics},
    )
    rows = EvaluationRows(tuple(Question(None, "?", "1") for _ in answers), (metric,), "rows")
    return EvalReport(rows, found, None, None, {}, {"server": "http://s"})


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["1"] * 5 + ["2"] * 5, "the interval of exact_match is wide, as there are only 10 rows"),
        (["1"] * 30, "all 30 rows have the same exact_match, so its interval has no width; as many as 10.0% of other"),
    ],
)
def test_intervals_that_say_little_are_warned_of(answers: list[str], words: str) -> None:
    (warning,) = warnings(report(answers, "exact_match"))
    assert warning.startswith(f"m: {words}")


def test_a_narrow_interval_is_not_warned_of() -> None:
    assert list(warnings(report(["1"] * 1900 + ["2"] * 100, "exact_match"))) == []


def test_answers_that_were_cut_or_had_no_room_are_counted() -> None:
    answers = ["1"] * 1900 + ["2"] * 100
    assert list(warnings(report(answers, "exact_match", "length"))) == [
        "m: 2000 answers were cut by max_tokens; raise --max-tokens"
    ]
    assert list(warnings(report(answers, "exact_match", "too_long"))) == [
        "m: 2000 prompts do not fit the server's context; they count as empty answers"
    ]


def test_the_table_shows_the_value_its_interval_and_what_was_left_out() -> None:
    found = list(lines(report(["1", "2"], "exact_match")))
    assert found[0] == "rows; server http://s"
    assert found[2] == "m: 2.0 s, 3 tokens/s"
    assert found[4].split() == ["exact_match", "0.5000", "0.0000", "to", "1.0000", "2"]


@pytest.mark.parametrize(
    ("responses", "metrics"),
    [
        (["a", "b"], ("exact_match",)),
        (['{"a": 1}', "b"], ("exact_match",)),
        (['{"a": 1}', "{}"], ("exact_match", "json_valid")),
        (['{"intent": "a", "slots": {}}'] * 2, ("exact_match", "json_valid", "slot_f1")),
    ],
)
def test_metrics_follow_the_references(tmp_path: Path, responses: list[str], metrics: tuple[str, ...]) -> None:
    rows = [{"prompt": f"p{i}", "response": text} for i, text in enumerate(responses)]
    found = load_rows(RowSource(data=write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert found.metrics == metrics
    assert [question.reference for question in found.questions] == responses
    assert found.what == "2 test rows of rows.jsonl"


def package(folder: Path, **training: str) -> Path:
    path = folder / "adapter"
    path.mkdir(parents=True)
    base = BaseRef("org/base", "f" * 64)
    manifest = Manifest(kind="lora", base=base, created=datetime.now(UTC), training=dict(training))
    (path / "hotswap.json").write_bytes(encode_manifest(manifest))
    return path


def test_a_package_is_served_as_it_was_trained(tiny_base: Path, tmp_path: Path) -> None:
    alone = find_target(str(package(tmp_path / "a", quantize="nf4-dq", dtype="float32")), on_server=False)
    assert serve_options_of(alone, base=None, quantize=None) == ServeOptions("org/base", "nf4-dq", "float32")
    assert serve_options_of(alone, base="other", quantize="int8") == ServeOptions("other", "int8", "float32")
    config = make_config(tmp_path / "b", tiny_base, "quantize=nf4")
    package(tmp_path / "b" / "run", quantize="nf4", dtype="bfloat16")
    template = tmp_path / "b" / "run" / "chat_template.jinja"
    template.write_text("Jinja")
    (tmp_path / "b" / "run" / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    run = find_target(config.output, on_server=True)
    found = serve_options_of(run, base=None, quantize=None)
    assert found == ServeOptions(str(tiny_base), "nf4", "bfloat16", template.resolve())
    assert base_serve_options_of(run, base=None, quantize=None) == found


def test_a_package_of_peft_s_own_needs_its_base_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    target = find_target(str(tmp_path), on_server=False)
    assert serve_options_of(target, base="b", quantize=None) == ServeOptions("b", "none", "auto")
    with pytest.raises(EvaluationError, match="does not say which base it is for; name it with --base"):
        serve_options_of(target, base=None, quantize=None)
