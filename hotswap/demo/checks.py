"""What must hold for the demo to succeed. Every check reads the findings; none measures anything itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hotswap.demo.asking import Answer
from hotswap.demo.findings import Check, Findings, Verdict

CLEARLY = 0.3  # an adapter must be right on this share more of the held-out rows than the base
ADAPTERS = ("contacts", "dates")
OLD, NEW = "contacts@1", "contacts@2"


def all_checks(findings: Findings) -> list[Check]:
    """Judge ``findings``."""
    return [
        _beats_base(findings, "contacts v2", "base on contacts"),
        _beats_base(findings, "dates", "base on dates"),
        _better_version(findings),
        _none_failed(findings),
        _labelled(findings),
        _pinned(findings),
        _switched(findings),
        _none_mixed(findings),
        _tells_apart(findings),
        Check("the server drained and stopped", findings.server_exit_code == 0, f"exit {findings.server_exit_code}"),
    ]


def _beats_base(findings: Findings, who: str, base: str) -> Check:
    adapter, plain = findings.scores[who], findings.scores[base]
    detail = f"{adapter.accuracy:.0%} against {plain.accuracy:.0%} on {len(adapter.rows)} held-out rows"
    return Check(f"{who} clearly beats the base", adapter.accuracy >= plain.accuracy + CLEARLY, detail)


def _better_version(findings: Findings) -> Check:
    old, new = findings.scores["contacts v1"].accuracy, findings.scores["contacts v2"].accuracy
    return Check("the replacement is better than what it replaced", new > old, f"{old:.0%}, then {new:.0%}")


def _none_failed(findings: Findings) -> Check:
    answers = [*findings.answers, *findings.lone.values()]
    failed = [answer for answer in answers if answer.error is not None]
    example = f"; first: {failed[0].error}" if failed else ""
    return Check("no request failed", not failed, f"{len(failed)} of {len(answers)}{example}")


def _labelled(findings: Findings) -> Check:
    """The header and every chunk of an answer name one version, of the adapter that was asked for."""
    wrong = [a for a in findings.answers if a.error is None and not _label_fits(a)]
    return Check("every answer names the version that gave it", not wrong, f"{len(wrong)} do not")


def _label_fits(answer: Answer) -> bool:
    in_chunks = {fingerprint.partition(":")[2] for fingerprint in answer.fingerprints}
    asked = answer.version.partition("@")[0] if answer.version else ""
    model = answer.question.model
    return in_chunks == {answer.version} and asked == (model if model in ADAPTERS else "")


def _pinned(findings: Findings) -> Check:
    """Streams begun on the old version ended on it, although the new one was answering others by then."""
    first_new = min((a.stamps[0] for a in findings.answers if a.version == NEW and a.stamps), default=float("inf"))
    across = [a for a in findings.answers if a.version == OLD and a.end > first_new]
    kept = [a for a in across if a.error is None and _label_fits(a)]
    detail = f"{len(kept)} of {len(across)} that were running when version 2 gave its first token"
    return Check("streams begun on version 1 ended on version 1", bool(across) and len(kept) == len(across), detail)


def _switched(findings: Findings) -> Check:
    """Requests after the upload's answer got the new version, those before it was sent the old one."""
    swap = findings.phase("replace")
    asked = [a for a in findings.answers if a.question.model == "contacts" and a.error is None]
    before = [a for a in asked if a.end < swap.start]
    after = [a for a in asked if a.start >= swap.end]
    wrong = [a for a in before if a.version != OLD] + [a for a in after if a.version != NEW]
    detail = f"{len(before)} before and {len(after)} after the replacement, {len(wrong)} on the wrong version"
    return Check("new requests got version 2 at once", bool(before and after) and not wrong, detail)


def _none_mixed(findings: Findings) -> Check:
    counts = findings.verdicts
    detail = (
        f"{sum(counts.values())} answers under load compared with the same version alone: {counts[Verdict.SAME]} "
        f"equal token by token, {counts[Verdict.ROUNDING]} up to a tie, {counts[Verdict.MIXED]} different"
    )
    return Check("no answer was mixed with another adapter's", bool(counts) and not counts[Verdict.MIXED], detail)


def _tells_apart(findings: Findings) -> Check:
    """The comparison can only find a mix-up where the versions answer differently; so they must."""
    pairs = list(_lone_pairs(findings))
    different = sum(old.text != new.text for old, new in pairs)
    detail = f"versions 1 and 2 answer {different} of {len(pairs)} prompts differently"
    return Check("that comparison can tell the versions apart", different > 0, detail)


def _lone_pairs(findings: Findings) -> Iterator[tuple[Answer, Answer]]:
    for key, answer in findings.lone.items():
        other = findings.lone.get(replace(key, served_by=NEW))
        if key.served_by == OLD and other is not None:
            yield answer, other
