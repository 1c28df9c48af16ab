"""What a gated publication found and did: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.errors import PublishError
from trainer.evaluation.report import warnings_of
from trainer.evaluation.results import Comparison, Evaluation
from trainer.evaluation.rows import EvaluationRows
from trainer.files import write_json
from trainer.publishing.gates import Judgement
from trainer.publishing.shares import Shares
from trainer.serving.client import ServedVersion


class GateOutcome(StrEnum):
    """How it ended."""

    PUBLISHED = "published"
    CANARY = "canary"
    LIVE_ALREADY = "live already"
    REFUSED = "refused"
    LIVE_KEPT_CHANGING = "live kept changing"


@dataclass(frozen=True, eq=False)
class GateReport:
    """One gated publication. ``live`` None: there was no live version, ``live_scores`` are the base's then.

    ``candidate_left``: the candidate is still on the server, without getting requests. ``shares`` is what it gets
    of the requests as a canary, or of copies of them.
    """

    server: str
    candidate: ServedVersion
    rows: EvaluationRows
    outcome: GateOutcome
    live: ServedVersion | None = None
    candidate_scores: Evaluation | None = None
    live_scores: Evaluation | None = None
    comparison: Comparison | None = None
    judgements: tuple[Judgement, ...] = ()
    confident: bool = False
    notes: tuple[str, ...] = ()
    was_removed: bool = False
    shares: Shares | None = None

    @property
    def is_served(self) -> bool:
        """Whether the package answers requests to the name: all, or a canary's share of them."""
        return self.is_live or self.outcome is GateOutcome.CANARY

    @property
    def is_live(self) -> bool:
        """Whether the package is what the name serves."""
        return self.outcome in (GateOutcome.PUBLISHED, GateOutcome.LIVE_ALREADY)

    @property
    def candidate_left(self) -> bool:
        """Whether the candidate waits on the server without getting requests."""
        return not (self.is_served or self.was_removed)

    def removed(self) -> GateReport:
        """The same, the candidate having been removed."""
        return replace(self, was_removed=True)

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        match self.outcome:
            case GateOutcome.PUBLISHED | GateOutcome.CANARY:
                return "every gate holds"
            case GateOutcome.LIVE_ALREADY:
                return "its content is live already; nothing was evaluated"
            case GateOutcome.REFUSED:
                failed = [str(judgement.gate) for judgement in self.judgements if not judgement.passed]
                verb = "does" if len(failed) == 1 else "do"
                with_certainty = " with 95 % confidence" if self.confident else ""
                return f"{', '.join(failed)} {verb} not hold{with_certainty}"
            case GateOutcome.LIVE_KEPT_CHANGING:
                return "others went on publishing while it was evaluated; try again when they are done"

    def lines(self) -> Iterator[str]:
        """The report for a terminal."""
        name = self.candidate.name
        if self.judgements and self.comparison:
            yield self.rows.what
            yield ""
            yield self.comparison.table()
            yield ""
            yield from map(str, self.judgements)
            yield ""
        if self.is_live:
            before = f", before it {self.live}" if self.live else ""
            yield f"published {name} version {self.candidate.version}: {self.reason}{before}"
            if self.live:
                yield f"back with: hotswap rollback {name} --server {self.server}"
            return
        if self.is_served:
            shares = self.shares.words(name) if self.shares else ""
            yield f"{self.candidate} {shares}: {self.reason}; the others go to {self.live}"
            yield f"then: hotswap adapters promote {name} --url {self.server}, or abort"
            return
        yield f"not published: {self.reason}"
        serves = f"{name} serves version {self.live.version} as before" if self.live else f"what {name} serves stays"
        if self.candidate_left:
            yield (
                f"{serves}; the candidate stays as {self.candidate}. To activate it all the same: "
                f'PATCH {self.server}/v1/adapters/{name} with {{"version": {self.candidate.version}}}'
            )
        else:
            yield f"{serves}; the candidate was removed"

    def warnings(self) -> list[str]:
        """What makes the figures say less than they seem to."""
        scores = [found for found in (self.candidate_scores, self.live_scores) if found]
        return [warning for found in scores for warning in warnings_of(found)]

    def as_dict(self) -> dict[str, Any]:
        """For --report."""
        live = None if self.live is None else {"version": self.live.version, "digest": self.live.digest}
        candidate = {"version": self.candidate.version, "digest": self.candidate.digest, "left": self.candidate_left}
        return {
            "name": self.candidate.name,
            "server": self.server,
            "outcome": self.outcome.value,
            "live": self.is_live,
            "canary": self.shares.canary if self.shares else None,
            "shadow": self.shares.shadow if self.shares else None,
            "reason": self.reason,
            "confident": self.confident,
            "notes": list(self.notes),
            "warnings": self.warnings(),
            "candidate": candidate,
            "compared_with": live or ("base" if self.live_scores else None),
            "rows": {
                "what": self.rows.what,
                "count": len(self.rows.questions),
                "sha256": self.candidate_scores.rows if self.candidate_scores else None,
            },
            "gates": [judgement.as_dict() for judgement in self.judgements],
            "comparison": self.comparison.as_dict() if self.comparison else None,
            "candidate_scores": self.candidate_scores.as_dict() if self.candidate_scores else None,
            "live_scores": self.live_scores.as_dict() if self.live_scores else None,
        }


def write_report(report: GateReport, path: Path) -> None:
    """Write ``as_dict`` to ``path``, whole or not at all. Raises PublishError."""
    try:
        write_json(path, report.as_dict())
    except OSError as error:
        raise PublishError(f"{path} cannot be written: {error.strerror}; the outcome was: {report.reason}") from error
