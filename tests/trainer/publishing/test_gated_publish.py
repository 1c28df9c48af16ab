"""Gated publishing into a real server: what goes live, what does not, and what others do meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live
from tests.trainer.publishing.conftest import ADMIN, INFERENCE, MAX_TOKENS, answer
from trainer.commands.publish import EXIT_REFUSED
from trainer.commands.publish import publish as publish_command
from trainer.errors import EvaluationError, PublishError
from trainer.evaluation.rows import EvaluationRows, RowSource, load_rows
from trainer.progress import ProgressCallback
from trainer.publishing.gate_report import GateOutcome, GateReport
from trainer.publishing.gated_publish import Feedback, GateOptions, publish_gated
from trainer.publishing.gates import parse_gates
from trainer.publishing.shares import Shares
from trainer.serving.client import AdminClient, ServedVersion
from trainer.serving.upload import upload

NAME = "gated"
PROMPT = "red 0"


@pytest.fixture(scope="module")
def rows(rows_file: Path) -> EvaluationRows:
    return load_rows(RowSource(data=rows_file))


class Bars:
    """Notes which models are asked, and calls ``meanwhile`` once the first row of a model is answered."""

    def __init__(self, meanwhile: Callable[[str], None] = lambda model: None) -> None:
        self.asked: list[str] = []
        self._meanwhile = meanwhile

    @contextmanager
    def __call__(self, model: str) -> Iterator[ProgressCallback]:
        self.asked.append(model)
        yield lambda done, total: self._meanwhile(model) if done == 1 else None


def gated(
    admin: AdminClient, package: Path, rows: EvaluationRows, *gates: str, bars: Bars | None = None, **options: Any
) -> tuple[GateReport, list[str]]:
    said: list[str] = []
    chosen = GateOptions(
        parse_gates(gates), api_key=INFERENCE, max_tokens=MAX_TOKENS, **{"metrics": rows.metrics, **options}
    )
    report = publish_gated(package, admin, NAME, rows, options=chosen, feedback=Feedback(said.append, bars or Bars()))
    return report, said


def states(admin: AdminClient) -> dict[int, str]:
    return {version.version: version.state for version in admin.versions(NAME)}


def put(admin: AdminClient, package: Path) -> ServedVersion:
    return upload(admin, package, NAME, replace=True)


def test_a_first_version_is_compared_with_the_base(
    server: Live, admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    bars = Bars()
    report, said = gated(admin, packages["right"], rows, "exact_match>=live", bars=bars)
    assert bars.asked == [f"{NAME}@1", server.context.base_name]
    assert said == [f"{NAME} serves no version yet: the candidate is compared with the base"]
    assert (report.outcome, report.live, report.is_live) == (GateOutcome.PUBLISHED, None, True)
    assert report.as_dict()["compared_with"] == "base"
    assert report.candidate_scores is not None
    assert report.candidate_scores.scores["exact_match"].value == 1.0, "the candidate itself was asked"
    assert states(admin) == {1: "live"}


def test_what_passes_gets_the_share_that_was_asked_for(
    server: Live, admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["wrong"])
    report, _ = gated(admin, packages["right"], rows, "exact_match>=live", shares=Shares(0.25))
    assert (report.outcome, report.is_live, report.is_served) == (GateOutcome.CANARY, False, True)
    assert states(admin) == {1: "live", 2: "canary"}
    assert admin.adapter(NAME)["traffic"]["canaries"][0]["weight"] == 0.25
    lines = list(report.lines())
    assert lines[-2] == f"{NAME}@2 gets 25% of the requests to {NAME}: every gate holds; the others go to {NAME}@1"
    assert lines[-1].startswith(f"then: hotswap adapters promote {NAME} ")
    written = report.as_dict()
    assert (written["outcome"], written["live"], written["canary"]) == ("canary", False, 0.25)
    assert written["candidate"]["left"] is False
    refused, _ = gated(admin, packages["other"], rows, "exact_match>=0.9", shares=Shares(0.25))
    assert (refused.outcome, refused.was_removed) == (GateOutcome.REFUSED, True)
    assert states(admin) == {1: "live", 2: "canary"}


def test_the_better_goes_live_and_the_worse_does_not(
    server: Live, admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["wrong"])
    before, after = answer(server, NAME, PROMPT), rows.questions[0].reference
    assert before != after
    stop = threading.Event()
    seen: list[list[str]] = [[], []]

    def traffic(mine: list[str]) -> None:
        while not stop.is_set():
            mine.append(answer(server, NAME, PROMPT))  # fails the test's thread when an answer is no 200

    users = [threading.Thread(target=traffic, args=(mine,)) for mine in seen]
    for user in users:
        user.start()
    bars = Bars()
    report, said = gated(admin, packages["right"], rows, "exact_match>=live", "exact_match>=0.9", bars=bars)
    assert report.outcome is GateOutcome.PUBLISHED
    assert bars.asked == [f"{NAME}@2", f"{NAME}@1"]
    refused, _ = gated(admin, packages["other"], rows, "exact_match>=live", "exact_match>=0")
    stop.set()
    for user in users:
        user.join(60)
    assert {text for mine in seen for text in mine} == {before, after}
    for mine in seen:
        assert mine[-1] == after
        assert mine == sorted(mine, key=[before, after].index), "the name flipped once"
    assert said == []

    assert (refused.outcome, refused.was_removed, refused.candidate_left) == (GateOutcome.REFUSED, True, False)
    assert [judgement.passed for judgement in refused.judgements] == [False, True]
    assert refused.reason == "exact_match>=live does not hold"
    assert states(admin) == {1: "stored", 2: "live"}
    server.wait(lambda: len(server.context.engine.resident) == 1, "the candidate's memory")


def test_a_candidate_that_is_refused_may_be_kept(
    server: Live, admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["right"])
    report, _ = gated(admin, packages["wrong"], rows, "exact_match>=live", keep_candidate=True)
    assert (report.outcome, report.candidate_left) == (GateOutcome.REFUSED, True)
    assert states(admin) == {1: "live", 2: "candidate"}
    assert f"stays as {NAME}@2" in "\n".join(report.lines())
    again, _ = gated(admin, packages["wrong"], rows, "exact_match>=live-1", keep_candidate=True)
    assert (again.outcome, again.candidate.version) == (GateOutcome.PUBLISHED, 2), "the same candidate, another gate"
    assert states(admin)[2] == "live"


def test_what_is_live_already_is_not_evaluated(
    admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["right"])
    bars = Bars()
    report, _ = gated(admin, packages["right"], rows, "exact_match>live", bars=bars)
    assert (report.outcome, report.is_live, bars.asked) == (GateOutcome.LIVE_ALREADY, True, [])
    assert states(admin) == {1: "live"}


def test_confidence_wants_the_whole_interval(
    admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["wrong"])
    report, _ = gated(admin, packages["other"], rows, "exact_match>=live+0", confident=True)
    assert report.outcome is GateOutcome.PUBLISHED, "both answer nothing right: certainly not worse"
    report, _ = gated(admin, packages["right"], rows, "exact_match>=0.9", confident=True)
    assert report.outcome is GateOutcome.PUBLISHED


# ---- others publish meanwhile ----


def test_when_another_publishes_meanwhile_it_is_compared_with_that(
    admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["wrong"])

    def meanwhile(model: str) -> None:
        if model == f"{NAME}@1":
            put(admin, packages["right"])

    bars = Bars(meanwhile)
    report, said = gated(admin, packages["other"], rows, "exact_match>=live", bars=bars)
    assert bars.asked == [f"{NAME}@2", f"{NAME}@1", f"{NAME}@3"]
    assert report.outcome is GateOutcome.REFUSED, "it held against version 1, which is live no more"
    assert report.live is not None
    assert report.live.version == 3
    assert said == [f"somebody else changed {NAME} from {NAME}@1 to {NAME}@3 meanwhile: compared with that instead"]
    assert report.notes == tuple(said)
    assert states(admin)[3] == "live"


def test_nothing_that_was_published_meanwhile_is_overwritten_blindly(
    server: Live, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    """Another is faster between the last look and the activation: only the server's own precondition can tell."""

    class Overtaken(AdminClient):
        def activate(
            self, name: str, version: int, *, expected_live: int | None = None, if_match: str | None = None
        ) -> ServedVersion:
            if expected_live == 1:
                put(self, packages["right"])
            return super().activate(name, version, expected_live=expected_live)

    with Overtaken(server.url, ADMIN) as admin:
        put(admin, packages["wrong"])
        report, said = gated(admin, packages["other"], rows, "exact_match>=live")
        assert report.outcome is GateOutcome.REFUSED
        assert len(said) == 1
        assert states(admin)[3] == "live"
        assert admin.live(NAME) is not None


def test_it_gives_up_when_others_go_on_publishing(
    admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["wrong"])
    turns = iter(["other", "wrong"] * 5)

    def meanwhile(model: str) -> None:
        if model != f"{NAME}@2":
            put(admin, packages[next(turns)])

    report, said = gated(admin, packages["right"], rows, "exact_match>=live", bars=Bars(meanwhile))
    assert (report.outcome, report.is_live, report.was_removed) == (GateOutcome.LIVE_KEPT_CHANGING, False, True)
    assert len(said) == 3
    assert "candidate" not in states(admin).values()
    assert "others went on publishing" in "\n".join(report.lines())
    assert report.as_dict()["gates"] == []


def test_a_first_version_that_another_publishes_meanwhile(
    admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    def meanwhile(model: str) -> None:
        if "@" not in model:  # the base is asked
            put(admin, packages["right"])

    report, _ = gated(admin, packages["wrong"], rows, "exact_match>=live", bars=Bars(meanwhile))
    assert report.outcome is GateOutcome.REFUSED
    assert states(admin) == {2: "live"}


# ---- failures ----


def test_an_interrupt_removes_the_candidate(
    admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows
) -> None:
    put(admin, packages["wrong"])

    def interrupt(model: str) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    options = GateOptions(parse_gates(["exact_match>=live"]), api_key=INFERENCE, max_tokens=MAX_TOKENS)
    feedback = Feedback(said.append, Bars(interrupt))
    with pytest.raises(KeyboardInterrupt):
        publish_gated(packages["right"], admin, NAME, rows, options=options, feedback=feedback)
    assert said == [f"the candidate {NAME}@2 was removed from {admin.server}; what was live goes on"]
    assert states(admin) == {1: "live"}


def test_a_candidate_that_another_removes(admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows) -> None:
    put(admin, packages["wrong"])
    bars = Bars(lambda model: admin.delete_version(NAME, 2, force=True))
    with pytest.raises((EvaluationError, PublishError), match="404"):
        gated(admin, packages["right"], rows, "exact_match>=live", bars=bars)
    assert states(admin) == {1: "live"}


def test_a_package_that_the_server_refuses(admin: AdminClient, packages: dict[str, Path], rows: EvaluationRows) -> None:
    with AdminClient(admin.server, "wrong key") as stranger:
        said: list[str] = []
        options = GateOptions(parse_gates(["exact_match>=live"]))
        with pytest.raises(PublishError, match=r"\(401\).*give a key with --admin-key"):
            publish_gated(
                packages["right"], stranger, NAME, rows, options=options, feedback=Feedback(said.append, Bars())
            )
    assert (said, admin.versions(NAME)) == ([], [])


# ---- the command ----


def command(server: Live, package: Path, rows_file: Path, *more: str) -> list[str]:
    keys = ["--admin-key", ADMIN, "--api-key", INFERENCE]
    options = ["--server", server.url, "--as", NAME, "--gate-data", str(rows_file), "--max-tokens", str(MAX_TOKENS)]
    return [str(package), *options, *keys, "--quiet", *more]


def test_the_command_and_its_report(
    server: Live,
    admin: AdminClient,
    packages: dict[str, Path],
    rows_file: Path,
    *,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "gate.json"
    gate = ("--gate", "exact_match>=live", "--report", str(file))
    assert publish_command(command(server, packages["right"], rows_file, *gate)) == 0
    out = capsys.readouterr()
    assert f"published {NAME} version 1: every gate holds" in out.out
    assert "compared with the base" in out.err
    assert publish_command(command(server, packages["wrong"], rows_file, *gate)) == EXIT_REFUSED == 3
    out = capsys.readouterr()
    assert "FAILS  exact_match>=live: 0.0000 against live's 1.0000" in out.out
    assert "not published: exact_match>=live does not hold" in out.out
    assert f"{NAME} serves version 1 as before; the candidate was removed" in out.out
    report = json.loads(file.read_text())
    assert (report["outcome"], report["live"]) == ("refused", False)
    assert report["candidate"]["left"] is False
    assert report["compared_with"] == {"version": 1, "digest": admin.versions(NAME)[0].digest}
    assert report["gates"][0]["passed"] is False
    assert report["comparison"]["metrics"]["exact_match"]["difference"] == -1.0
    assert report["rows"]["count"] == 24
    assert states(admin) == {1: "live"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--gate", "exact_match>=alive"), "is not a gate"),
        (("--gate", "exact_match>=live", "--report", "/nowhere/at/all.json"), "cannot be written"),
        (("--gate", "exact_match>=live", "--gate-data", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    server: Live,
    admin: AdminClient,
    packages: dict[str, Path],
    rows_file: Path,
    *,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert publish_command(command(server, packages["right"], rows_file, *more)) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert admin.versions(NAME) == []


@pytest.mark.parametrize("option", ["--confident", "--keep-candidate", "--rows=3", "--report=x.json"])
def test_options_of_gates_want_a_gate(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        publish_command(["package", "--server", "http://127.0.0.1:9", "--as", NAME, option])
    assert ended.value.code == 2
    assert "is for a --gate" in capsys.readouterr().err
