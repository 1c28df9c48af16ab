"""Gated publishing: a package goes live only if it proves itself on the very server that it is to be served by.

It is uploaded as a candidate, which no request gets that does not ask for it. The server answers the same rows as the
candidate and as what is live. Only if every gate holds is the candidate activated, and only over what it was compared
with. In every other case it is removed, and what runs has noticed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.names import check_name
from adapters.package.reading import read_package
from trainer.errors import EvaluationError, PublishError
from trainer.evaluation.evaluate import always, evaluate
from trainer.evaluation.metrics import find_metrics
from trainer.evaluation.results import Comparison, Evaluation
from trainer.evaluation.rows import EvaluationRows
from trainer.evaluation.scoring import check_scorable, compare, scorable
from trainer.progress import OpenBar, ProgressCallback
from trainer.publishing.gate_report import GateOutcome, GateReport
from trainer.publishing.gates import LIVE, MAJORITY, Gate, judge
from trainer.publishing.shares import Shares
from trainer.serving.client import AdminClient, Endpoint, RefusedError, ServedVersion
from trainer.serving.upload import upload

Say = Callable[[str], None]
_WITHOUT_BASE = ("classification", "token-classification", "tagging", "regression")  # a base has no head for them
ROUNDS = 3  # of evaluation, when others publish meanwhile
_REMOVAL_SECONDS = 15.0


@dataclass(frozen=True)
class GateOptions:
    """How to judge. ``metrics`` are measured beside those of the gates; ``confident`` wants whole intervals.

    What passes goes live, or with ``shares`` gets those of the requests.
    """

    gates: Sequence[Gate]
    metrics: Sequence[str] = ()
    confident: bool = False
    keep_candidate: bool = False
    shares: Shares = field(default_factory=Shares)
    allow_noop: bool = False
    api_key: str | None = None
    max_tokens: int | None = None
    concurrency: int = 8
    timeout: float = 300.0


@dataclass(frozen=True)
class Feedback:
    """Where progress and remarks go."""

    say: Say
    bar: OpenBar
    upload: ProgressCallback | None = None


def publish_gated(
    package: Path, client: AdminClient, name: str, rows: EvaluationRows, *, options: GateOptions, feedback: Feedback
) -> GateReport:
    """Publish ``package`` as ``name`` if it stands all gates on ``rows``.

    Raises AdapterError for an unsound package, PublishError and EvaluationError when server or answers fail; the
    candidate is removed then, also when interrupted, as far as the server can be reached.
    """
    check_name(name)
    options.shares.check(client, name)
    digest = read_package(package).digest
    with _removed_on_failure(client, name, digest, feedback.say, unless=RefusedError):  # then nothing has come in
        candidate = upload(
            client, package, name, activate=False, allow_noop=options.allow_noop, progress=feedback.upload
        )
    for warning in candidate.warnings:
        feedback.say(f"warning: {warning}")
    if candidate.state == "live":
        return GateReport(client.server, candidate, rows, GateOutcome.LIVE_ALREADY)
    with _removed_on_failure(client, name, digest, feedback.say):
        report = _CandidateEvaluation(client, name, rows, options, feedback).run(candidate)
        if report.is_served or options.keep_candidate:
            return report
        client.delete_version(name, candidate.version)
        return report.removed()


class _CandidateEvaluation:
    """A candidate against what is live, again when that changes meanwhile."""

    def __init__(
        self, client: AdminClient, name: str, rows: EvaluationRows, options: GateOptions, feedback: Feedback
    ) -> None:
        self._client = client
        self._name = name
        self._rows = rows
        self._options = options
        self._say, self._bar = feedback.say, feedback.bar
        self._notes: list[str] = []
        judged = list(dict.fromkeys(gate.metric for gate in options.gates))
        if rows.reads not in _WITHOUT_BASE and any(gate.other == MAJORITY for gate in options.gates):
            raise PublishError("--gate: majority is of rows with a class, tags or a number; name live, or a bound")
        for metric in find_metrics(judged):
            check_scorable(metric, rows.questions)
        also = [name for name in options.metrics if name not in judged]
        self._metrics = [*judged, *scorable(also, rows.questions, self._note)] if also else judged

    def run(self, candidate: ServedVersion) -> GateReport:
        ours = self._evaluate(str(candidate))
        for _ in range(ROUNDS):
            live = self._client.live(self._name)
            theirs = self._evaluate_live(live)
            if theirs is None:
                continue
            comparison = compare(ours, theirs)
            judgements = judge(
                self._options.gates, ours, {LIVE: comparison, **self._majority(ours)}, confident=self._options.confident
            )
            passed = all(judgement.passed for judgement in judgements)
            published = GateOutcome.CANARY if self._options.shares.asked else GateOutcome.PUBLISHED
            outcome = published if passed else GateOutcome.REFUSED
            if passed and self._options.shares.asked:
                self._post(candidate, ours)
                self._post(live, theirs)
            if passed and not self._activated(candidate, live):
                continue
            return GateReport(
                self._client.server, candidate, self._rows, outcome, live, ours, theirs, comparison, judgements,
                confident=self._options.confident, notes=tuple(self._notes), shares=self._options.shares,
            )  # fmt: skip
        return GateReport(
            self._client.server, candidate, self._rows, GateOutcome.LIVE_KEPT_CHANGING, candidate_scores=ours,
            confident=self._options.confident, notes=tuple(self._notes),
        )  # fmt: skip

    def _majority(self, ours: Evaluation) -> dict[str, Comparison]:
        """The candidate against one answer to all rows, where a gate asks for it."""
        if all(gate.other != MAJORITY for gate in self._options.gates):
            return {}
        return {MAJORITY: compare(ours, always(self._rows.questions, self._metrics, self._rows.reads))}

    def _evaluate_live(self, live: ServedVersion | None) -> Evaluation | None:
        """How what is live answers; None when something else is live by now."""
        reads = self._rows.reads
        if live is None and reads in _WITHOUT_BASE:
            self._note(f"{self._name} serves no version yet: the candidate is compared with one answer to all rows")
            return None if self._changed(live) else always(self._rows.questions, self._metrics, reads)
        if live is None:
            self._note(f"{self._name} serves no version yet: the candidate is compared with the base")
        model = str(live) if live else self._client.base_name()
        try:
            found = self._evaluate(model)
        except EvaluationError:
            if not self._changed(live):
                raise
            return None
        return None if self._changed(live) else found

    def _changed(self, live: ServedVersion | None) -> bool:
        now = self._client.live(self._name)
        if (now and now.version) == (live and live.version):
            return False
        self._note_change(live, now)
        return True

    def _post(self, version: ServedVersion | None, found: Evaluation) -> None:
        """Let the server know what was measured: a canary's rules may look at it."""
        if version is not None:
            scores = {metric: score.value for metric, score in found.scores.items()}
            fields = {"version": version.version, "scores": scores}
            self._client.act(self._name, "scores", fields, "to note the scores")

    def _activated(self, candidate: ServedVersion, live: ServedVersion | None) -> bool:
        """Activate the candidate, or make it a canary, unless something else is live by now than what it was compared
        with."""
        shares, expected = self._options.shares, live.version if live else 0
        try:
            if shares.asked:
                shares.begin(self._client, candidate, expected_live=expected)
            else:
                self._client.activate(self._name, candidate.version, expected_live=expected)
        except RefusedError as error:
            if error.code != "live_version_changed":
                raise
            self._note_change(live, self._client.live(self._name))
            return False
        return True

    def _note_change(self, before: ServedVersion | None, now: ServedVersion | None) -> None:
        was, became = (str(one) if one else "no version" for one in (before, now))
        self._note(f"somebody else changed {self._name} from {was} to {became} meanwhile: compared with that instead")

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            self._say(text)

    def _evaluate(self, model: str) -> Evaluation:
        options = self._options
        with self._bar(model) as progress:
            return evaluate(
                Endpoint(self._client.server, model, options.api_key),
                self._rows.questions,
                self._metrics,
                max_tokens=options.max_tokens,
                concurrency=options.concurrency,
                timeout=options.timeout,
                progress=progress,
                reads=self._rows.reads,
            )


@contextmanager
def _removed_on_failure(
    client: AdminClient, name: str, digest: str, say: Say, *, unless: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """When the block fails or is interrupted, remove the candidate of this content and say what is left."""
    try:
        yield
    except unless:
        raise
    except BaseException:
        with AdminClient(client.server, client.key, timeout=_REMOVAL_SECONDS) as hurried:
            say(_remove_candidate(hurried, name, digest))
        raise


def _remove_candidate(client: AdminClient, name: str, digest: str) -> str:
    """Remove what an upload has left, which may have arrived without our hearing of it; says what was done."""
    try:
        found = [version for version in client.versions(name) if version.digest == digest]
        waiting = [version for version in found if version.state == "candidate"]
        for version in waiting:
            client.delete_version(name, version.version, force=True)
    except PublishError as error:
        return (
            f"a candidate for {name} may be left on {client.server} ({error}); look at GET /v1/adapters/{name} and "
            f"DELETE /v1/adapters/{name}/versions/VERSION"
        )
    for version in found:
        if version.state == "live":
            return f"{version} is live on {client.server}"
    if waiting:
        return f"the candidate {waiting[0]} was removed from {client.server}; what was live goes on"
    return f"no candidate was left on {client.server}"
