"""Fine-tuning jobs and batches: how many, how far, how good, and what they take."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query, Row
from deploy.grafana.promql import HERE, SERVER, rate, total
from deploy.grafana.shared import INSTANCE, MODEL, STARTS, SWAPS


def _ended(status: str) -> str:
    return f'sum(increase(hotswap_fine_tuning_jobs_ended_total{{{HERE},status="{status}"}}[$__range]))'


def _batches_ended(statuses: str) -> str:
    return f'sum(increase(hotswap_batches_ended_total{{{HERE},status=~"{statuses}"}}[$__range]))'


def _number(title: str, expr: str, about: str, unit: str = "short") -> Panel:
    return Panel(title, [Query(expr)], about, kind="stat", unit=unit, width=4, height=4)


def _in_catalog(status: str) -> str:
    return f'max(hotswap_fine_tuning_jobs{{{HERE},status="{status}"}})'


NOW = Row("Jobs now", [
    _number("Running", _in_catalog("running"), "In the catalog, on whichever server."),
    _number("Queued", _in_catalog("queued"), "Waiting for their turn."),
    _number("Paused", _in_catalog("paused"), "Until they are resumed."),
    _number("Succeeded", _ended("succeeded"), "In the time that is shown."),
    _number("Failed", _ended("failed"), "In the time that is shown."),
    _number("Training time", f"sum(increase(hotswap_fine_tuning_seconds_total{{{HERE}}}[$__range]))",
            "In the time that is shown.", "s"),
])  # fmt: skip

RUNS = Row("Runs", [
    Panel("Progress", [Query(f"hotswap_fine_tuning_progress_ratio{{{HERE}}}", "{{job}}")],
          "Done steps of the jobs that run.", unit="percentunit", top=1, width=12),
    Panel("Loss", [Query(f"hotswap_fine_tuning_loss{{{HERE}}}", "{{job}} {{rows}}")],
          "The newest of the jobs that run, on training and validation rows.", width=12),
    Panel("Jobs", [Query(f"max by (status) (hotswap_fine_tuning_jobs{{{HERE}}})", "{{status}}")],
          "In the catalog, by status.", stacked=True),
    Panel("Tokens", [Query(rate("fine_tuning_tokens_total", by="instance"), "{{instance}}")],
          "Trained on, a second."),
    Panel("Jobs at once", [Query(rate("fine_tuning_seconds_total", by="instance"), "{{instance}}")],
          "Jobs that run at once, in the mean."),
    Panel("Ended", [Query(f"sum by (status) (increase(hotswap_fine_tuning_jobs_ended_total{{{HERE}}}"
                          "[$__rate_interval]))", "{{status}}")],
          "Jobs, by how they ended.", stacked=True),
    Panel("What requests feel of it", [
        Query(f"histogram_quantile(0.95, sum by (le) (rate(hotswap_inter_token_latency_seconds_bucket{{{HERE}}}"
              "[$__rate_interval])))", "between tokens, p95"),
    ], "Jobs have the lowest priority: this should not rise while one runs.", unit="s"),
    Panel("Memory", [Query(f"process_resident_memory_bytes{{{SERVER}}} and on (instance) hotswap_build_info",
                           "server {{instance}}"),
                     Query(f"hotswap_engine_process_resident_memory_bytes{{{SERVER}}}", "engine {{instance}}")],
          "Of what serves; a job's own memory is limited by --fine-tuning-memory-gb.", unit="bytes"),
])  # fmt: skip

BATCHES = Row("Batches", [
    _number("Open", f'max(sum by (instance) (hotswap_batches{{{HERE},status=~"validating|in_progress|finalizing"}}))',
            "Batches that are checked, done or written, on whichever server."),
    _number("Oldest", f"max(hotswap_batches_oldest_seconds{{{HERE}}})",
            "Age of the oldest that has not ended; after 24 hours what has no answer is given up.", "s"),
    _number("Requests waiting", total("batches_requests_waiting"), "Of the batches that have begun."),
    _number("Requests running", total("batches_requests_running"), "Not answered yet; --batch-concurrency at most."),
    _number("Completed", _batches_ended("completed"), "Batches, in the time that is shown."),
    _number("Failed or expired", _batches_ended("failed|expired"), "Batches, in the time that is shown."),
    Panel("Batches by status", [Query(f"max by (status) (hotswap_batches{{{HERE}}})", "{{status}}")],
          "In the catalog.", stacked=True),
    Panel("Requests of batches", [Query(total("batches_requests_waiting"), "waiting"),
                                  Query(total("batches_requests_running"), "running")],
          "Not answered yet, of the batches that have begun."),
    Panel("Answers of batches", [Query(rate("batches_requests_total", by="outcome"), "{{outcome}}")],
          "Requests a second, by what became of them.", unit="reqps", stacked=True),
])  # fmt: skip

JOBS = Dashboard(
    uid="hotswap-jobs",
    title="hotswap: jobs and batches",
    about="Fine-tuning jobs and batches: how many, how far, how good, and what they take.",
    variables=[MODEL, INSTANCE],
    marks=[SWAPS, STARTS],
    rows=[NOW, RUNS, BATCHES],
)
