"""Each check of the demo fails for what it is there to find."""

from __future__ import annotations

import pytest

from hotswap.demo.asking import Answer
from hotswap.demo.checks import all_checks
from hotswap.demo.findings import Findings, Verdict
from tests.hotswap.demo.answers import answer, good, scored


def failing(findings: Findings) -> list[str]:
    return [check.name for check in all_checks(findings) if not check.ok]


def test_a_good_run_passes() -> None:
    assert failing(good()) == []


@pytest.mark.parametrize(
    ("who", "right", "name"),
    [
        ("contacts v2", 3, "contacts v2 clearly beats the base"),
        ("dates", 2, "dates clearly beats the base"),
        ("contacts v1", 10, "the replacement is better than what it replaced"),
    ],
)
def test_an_adapter_that_learned_too_little_fails(who: str, right: int, name: str) -> None:
    findings = good()
    findings.scores[who] = scored(who, right)
    assert name in failing(findings)


def bad_answers() -> list[tuple[Answer, str]]:
    unlabelled = answer(["b"], model="base", version="", start=22)
    unlabelled.version = "contacts@1"
    changed = answer(["old"] * 8, version="contacts@1", start=12)
    changed.fingerprints.add("fp_1:contacts@2")
    return [
        (answer(["x"], start=22, version="contacts@2", error="APIError: broke"), "no request failed"),
        (unlabelled, "every answer names the version that gave it"),
        (changed, "streams begun on version 1 ended on version 1"),
        (answer(["old"], version="contacts@1", start=22), "new requests got version 2 at once"),
        (answer(["new"], version="contacts@2", start=2), "new requests got version 2 at once"),
    ]


@pytest.mark.parametrize(("bad", "name"), bad_answers())
def test_a_bad_answer_fails_its_check(bad: Answer, name: str) -> None:
    findings = good()
    findings.answers.append(bad)
    assert name in failing(findings)


def test_no_stream_across_the_replacement_proves_nothing() -> None:
    findings = good()
    del findings.answers[1]
    assert failing(findings) == ["streams begun on version 1 ended on version 1"]


def test_a_mixed_answer_fails() -> None:
    findings = good()
    findings.verdicts[Verdict.MIXED] = 1
    assert failing(findings) == ["no answer was mixed with another adapter's"]


def test_a_comparison_of_nothing_fails() -> None:
    findings = good()
    findings.verdicts.clear()
    assert failing(findings) == ["no answer was mixed with another adapter's"]


def test_versions_that_answer_alike_cannot_show_a_mix_up() -> None:
    findings = good()
    for lone in findings.lone.values():
        lone.text = "the same"
    assert failing(findings) == ["that comparison can tell the versions apart"]


def test_a_server_that_did_not_drain_fails() -> None:
    findings = good()
    findings.server_exit_code = -9
    assert failing(findings) == ["the server drained and stopped"]
