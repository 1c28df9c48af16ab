"""What ``hotswap eval`` says: tables for people, JSON for machines, and every answer as a line of JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.evaluate import TOO_LONG, chat_fields
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.results import Comparison, Evaluation, Score, ScoredAnswer
from trainer.evaluation.suite import EvalReport
from trainer.files import write_json, write_whole

_WIDE = 0.1  # of a metric's range, or of its value where it has no highest one


def lines(report: EvalReport) -> Iterator[str]:
    """The report for a terminal."""
    yield "; ".join([report.rows.what, *(f"{key} {value}" for key, value in report.served.items())])
    for evaluation in (report.candidate, report.versus):
        if evaluation:
            yield ""
            yield from _table(evaluation)
    if report.comparison:
        yield ""
        yield from _comparison(report.comparison)
    if report.retention:
        yield ""
        yield "retention: what the base could do, before and after training"
        for name, comparison in report.retention.items():
            yield from _comparison(comparison, f"{name} ")


def warnings(report: EvalReport) -> Iterator[str]:
    """What makes the figures say less than they seem to."""
    for evaluation in (report.candidate, report.versus):
        if evaluation:
            yield from warnings_of(evaluation)


def warnings_of(evaluation: Evaluation) -> Iterator[str]:
    """What makes the figures of one model say less than they seem to."""
    if evaluation.cut:
        yield f"{evaluation.model}: {_counted(evaluation.cut)} cut by max_tokens; raise --max-tokens"
    if too_long := sum(answer.finish_reason == TOO_LONG for answer in evaluation.answers):
        yield f"{evaluation.model}: {too_long} prompts do not fit the server's context; they count as empty answers"
    for score in evaluation.scores.values():
        yield from _wide(evaluation.model, score)


def as_dict(report: EvalReport) -> dict[str, Any]:
    """For --json."""
    return {
        "hotswap": version("hotswap"),
        "served": dict(report.served),
        "rows": {"what": report.rows.what, "count": len(report.rows.questions), "sha256": report.candidate.rows},
        "candidate": report.candidate.as_dict(),
        "versus": report.versus.as_dict() if report.versus else None,
        "comparison": report.comparison.as_dict() if report.comparison else None,
        "retention": {name: comparison.as_dict() for name, comparison in report.retention.items()},
        "warnings": list(warnings(report)),
    }


def write_report(report: EvalReport, path: Path) -> None:
    """Write ``as_dict`` to ``path``, whole or not at all. Raises EvaluationError."""
    with _writing(path):
        write_json(path, as_dict(report))


def write_answers(report: EvalReport, path: Path) -> None:
    """Write a line for every row: question, reference, and each model's answer with its scores."""
    rows = []
    for i, question in enumerate(report.rows.questions):
        row = {**_asked(question), "reference": question.reference, **_answer(report.candidate.answers[i])}
        if report.versus:
            row["versus"] = _answer(report.versus.answers[i])
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    with _writing(path):
        write_whole(path, "".join(rows))


def _table(evaluation: Evaluation) -> Iterator[str]:
    yield f"{evaluation.model}: {evaluation.seconds:.1f} s, {evaluation.tokens_per_second:.0f} tokens/s"
    yield f"  {'metric':<16} {'value':>9}  {'95 % interval':<20} rows"
    for score in evaluation.scores.values():
        interval = f"{score.low:.4f} to {score.high:.4f}"
        lower = "" if score.higher_is_better else "lower is better"
        notes = "; ".join(note for note in (lower, score.note) if note)
        yield f"  {score.name:<16} {score.value:>9.4f}  {interval:<20} {score.count}{'  ' + notes if notes else ''}"


def _comparison(comparison: Comparison, prefix: str = "") -> Iterator[str]:
    yield f"{prefix}{comparison.candidate} against {comparison.live}"
    for one in comparison.differences.values():
        values = f"{one.live:.4f} -> {one.candidate:.4f}"
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        yield f"  {one.name:<16} {values:<20} {one.difference:+.4f}  ({interval})  {one.verdict}"


def _wide(model: str, score: Score) -> Iterator[str]:
    top = METRICS[score.name].highest
    width = score.high - score.low
    if width == 0 and score.count > 1:
        yield (
            f"{model}: all {score.count} rows have the same {score.name}, so its interval has no width; "
            f"as many as {min(1.0, 3 / score.count):.1%} of other rows may differ"
        )
    elif width > _WIDE * (top or abs(score.value)):
        yield f"{model}: the interval of {score.name} is wide, as there are only {score.count} rows"


def _counted(count: int) -> str:
    return f"{count} answer was" if count == 1 else f"{count} answers were"


def _asked(question: Question) -> dict[str, Any]:
    if question.messages is None:
        return {"prompt": question.prompt}
    return chat_fields(question)


def _answer(answer: ScoredAnswer) -> dict[str, Any]:
    return {"answer": answer.text, "finish_reason": answer.finish_reason, "scores": answer.per_row}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror}") from error
