"""One ``hotswap eval``: the candidate on its rows, what it is compared with, and retention tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.results import Comparison, Evaluation
from trainer.evaluation.retention import RetentionTask, retention_tasks
from trainer.evaluation.rows import EvaluationRows
from trainer.evaluation.scoring import compare
from trainer.evaluation.targets import (
    BASE,
    Endpoints,
    EvaluationTarget,
    ServeOptions,
    base_serve_options_of,
    running_server,
    serve_options_of,
    started_server,
)
from trainer.progress import OpenBar
from trainer.serving.client import Endpoint


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate. ``server`` None: servers of our own, on ``base`` and ``quantize`` where these are not None.

    ``probe_folders`` are published sets for retention by name, of each of which ``probe_rows`` rows are asked.
    """

    server: str | None = None
    api_key: str | None = None
    admin_key: str | None = None
    base: str | None = None
    quantize: str | None = None
    trust_remote_code: bool = False
    max_tokens: int | None = None
    concurrency: int = 8
    timeout: float = 300.0
    retention: bool = False
    probe_folders: Mapping[str, Path] = field(default_factory=dict)
    probe_rows: int = 100


@dataclass(frozen=True)
class EvalReport:
    """What a run found. ``served`` is where and how the candidate was; ``retention`` compares it with the base, by
    task."""

    rows: EvaluationRows
    candidate: Evaluation
    versus: Evaluation | None
    comparison: Comparison | None
    retention: Mapping[str, Comparison]
    served: Mapping[str, str] = field(default_factory=dict)


def run_suite(
    candidate: EvaluationTarget,
    versus: EvaluationTarget | None,
    rows: EvaluationRows,
    metrics: Sequence[str],
    options: EvalOptions,
    *,
    bar: OpenBar,
) -> EvalReport:
    """Evaluate ``candidate`` on ``rows``, ``versus`` too, and candidate and base on the retention tasks if asked for.

    Raises EvaluationError and what else keeps answers from coming; a server that was started is stopped in any case.
    """
    tasks = _retention_tasks(rows, options) if options.retention else []
    base = EvaluationTarget(BASE)
    targets = list(dict.fromkeys([candidate, *([versus] if versus else []), *([base] if tasks else [])]))
    work = _Evaluator(rows, metrics, options, bar)
    found: dict[EvaluationTarget, Evaluation] = {}
    retained: dict[EvaluationTarget, dict[str, Evaluation]] = {}
    for place in _places(targets, candidate, options):
        with place as endpoints:
            for target, endpoint in endpoints.items():
                if target in (candidate, versus):
                    found[target] = work.rows_of(target, endpoint)
                if target in (candidate, base):
                    retained[target] = {task.name: work.retention_of(target, endpoint, task) for task in tasks}
    ours, theirs = found[candidate], found[versus] if versus else None
    retention = {task.name: compare(retained[candidate][task.name], retained[base][task.name]) for task in tasks}
    compared = compare(ours, theirs) if theirs else None
    return EvalReport(rows, ours, theirs, compared, retention, _served(candidate, options))


def _served(candidate: EvaluationTarget, options: EvalOptions) -> dict[str, str]:
    if options.server:
        return {"server": options.server}
    serving = _serving(candidate, candidate, options)
    return {"base": serving.base, "quantize": serving.quantize, "dtype": serving.dtype}


@dataclass(frozen=True)
class _Evaluator:
    """What every target is asked."""

    rows: EvaluationRows
    metrics: Sequence[str]
    options: EvalOptions
    bar: OpenBar

    def rows_of(self, target: EvaluationTarget, endpoint: Endpoint) -> Evaluation:
        most, reads = self.options.max_tokens, self.rows.reads
        found = self._evaluate(target.label, endpoint, self.rows.questions, self.metrics, most, reads)
        return replace(found, model=target.label)

    def retention_of(self, target: EvaluationTarget, endpoint: Endpoint, task: RetentionTask) -> Evaluation:
        title = f"{target.label}: {task.name}"
        return replace(
            self._evaluate(title, endpoint, task.questions, [task.metric], task.max_tokens), model=target.label
        )

    def _evaluate(  # noqa: PLR0917 - all that is asked
        self,
        title: str,
        endpoint: Endpoint,
        questions: Sequence[Question],
        metrics: Sequence[str],
        most: int | None,
        reads: str = "",
    ) -> Evaluation:
        options = self.options
        with self.bar(title) as progress:
            return evaluate(
                endpoint,
                questions,
                metrics,
                max_tokens=most,
                concurrency=options.concurrency,
                timeout=options.timeout,
                progress=progress,
                reads=reads,
            )


def _retention_tasks(rows: EvaluationRows, options: EvalOptions) -> list[RetentionTask]:
    if rows.reads:
        raise EvaluationError(f"--retention is for models that write; this one is asked for {rows.reads}")
    chat = rows.questions[0].messages is not None
    return retention_tasks(options.probe_folders, options.probe_rows, chat=chat)


def _places(
    targets: Sequence[EvaluationTarget], candidate: EvaluationTarget, options: EvalOptions
) -> Iterator[AbstractContextManager[Endpoints]]:
    """The servers that ``targets`` are asked on, to be opened one after the other."""
    if options.server:
        yield running_server(options.server, targets, api_key=options.api_key, admin_key=options.admin_key)
        return
    servings = {target: _serving(target, candidate, options) for target in targets}
    for serving in dict.fromkeys(servings.values()):
        yield started_server(serving, [target for target in targets if servings[target] == serving])


def _serving(target: EvaluationTarget, candidate: EvaluationTarget, options: EvalOptions) -> ServeOptions:
    """How the base of ``target`` is served; the plain base is that of ``candidate``."""
    if target.directory:
        serving = serve_options_of(target, base=options.base, quantize=options.quantize)
    else:
        serving = base_serve_options_of(candidate, base=options.base, quantize=options.quantize)
    return replace(serving, trust_remote_code=options.trust_remote_code)
