"""A report on data in words and bars."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.data.lengths import Lengths, Limit
from trainer.data.report import DataReport, Finding

_BAR = 40  # characters of the longest one
_MANY_PIECES = 0.15
_LITTLE_LEARNED = 0.02


def report_text(report: DataReport) -> str:
    """``report`` for a terminal."""
    return "\n".join([*_head(report), *_findings(report), *_lengths(report), *_limits(report), *_verdict(report)])


def _head(report: DataReport) -> Iterator[str]:
    yield from report.notes
    left_out = f", {report.left_out:,} not used (data.max_rows, data.duplicates)" if report.left_out else ""
    yield f"{report.train:,} examples to train on, {report.validation:,} to validate on{left_out}"


def _findings(report: DataReport) -> Iterator[str]:
    for reason, finding in sorted(report.dropped.items()):
        yield f"dropped: {_found(finding)} {reason}{_places(finding)}"
    for key, finding in sorted(report.cut.items()):
        yield f"cut at data.{key}: {_found(finding)}{_places(finding)}"
    named = {
        "equal an earlier one": report.repeated,
        "to validate on are rows to train on as well": report.overlapping,
        "end without a token that ends the turn, so the model learns to go on": report.unfinished,
        "are far longer than the rest": report.outliers,
    }
    for what, finding in named.items():
        if finding.count:
            yield f"unusual: {_found(finding)} {what}{_places(finding)}"
    yield from _unusual(report)


def _unusual(report: DataReport) -> Iterator[str]:
    use = report.vocabulary
    if report.ambiguous:
        yield f"unusual: {report.ambiguous:,} rows ask what another row asks, and answer otherwise"
    if use.unknown:
        yield f"unusual: {use.unknown:.2%} of the tokens are unknown to the tokenizer: the model cannot read them"
    if use.byte_pieces > _MANY_PIECES:
        yield (
            f"unusual: {use.byte_pieces:.0%} of the tokens are parts of one character: the base hardly knows this "
            "script, and rows are several times as long as with a base that does"
        )
    if report.lengths and report.learned < _LITTLE_LEARNED:
        yield f"unusual: only {report.learned:.2%} of the tokens are learned; most of the work goes into reading"


def _lengths(report: DataReport) -> Iterator[str]:
    if not (report.lengths and report.read_lengths and report.learned_lengths):
        return
    yield f"\n{'tokens a row':<22}{'min':>8}{'median':>8}{'mean':>9}{'p95':>8}{'max':>8}"
    parts = (("read (prompt)", report.read_lengths), ("learned (response)", report.learned_lengths))
    for name, lengths in (*parts, ("both", report.lengths)):
        yield (
            f"{name:<22}{lengths.min:>8,}{lengths.median:>8,}{lengths.mean:>9,.1f}{lengths.p95:>8,}{lengths.max:>8,}"
        )
    yield f"{report.learned:.1%} of {report.vocabulary.tokens:,} tokens are learned\n"
    yield from _histogram(report.lengths)


def _histogram(lengths: Lengths) -> Iterator[str]:
    most = max(bar.count for bar in lengths.histogram)
    width = len(f"{lengths.max:,}")
    for bar in lengths.histogram:
        drawn = "█" * (round(_BAR * bar.count / most) or bool(bar.count))
        yield f"{bar.low:>{width},} to {bar.high:>{width},} {drawn} {bar.count:,}"


def _limits(report: DataReport) -> Iterator[str]:
    if not report.limits:
        return
    yield f"\n{'data.max_length':<18}{'rows longer':>12}{'padding':>10}{'shuffled':>10}{'packed':>10}"
    for limit in report.limits:
        yield _limit(limit, "")
    if report.current_limit:
        yield _limit(report.current_limit, "  (as configured)")
    yield "padding: of batches of rows alike in length, as training makes them; of any rows; with training.packing"


def _limit(limit: Limit, remark: str) -> str:
    shares = "".join(f"{share:>10.1%}" for share in (limit.padding, limit.padding_shuffled, limit.padding_packed))
    return f"{limit.max_length:<18,}{limit.rows_longer:>12,}{shares}{remark}"


def _verdict(report: DataReport) -> Iterator[str]:
    if report.suggested_max_length and report.suggested_max_length != report.max_length:
        yield f"suggested: data.max_length={report.suggested_max_length}"
    yield f"\nerror: {report.error}" if report.error else "\nthis data can be trained on"


def _found(finding: Finding) -> str:
    return f"{finding.count:,} row{'' if finding.count == 1 else 's'}"


def _places(finding: Finding) -> str:
    parts = [place.rpartition("/") for place in finding.first]
    alike = len({folder for folder, _slash, _name in parts}) == 1  # the report begins with the files' full names
    names = [name for _folder, _slash, name in parts] if alike else finding.first
    return f" ({', '.join(names)}{', ...' if finding.count > len(names) else ''})"
