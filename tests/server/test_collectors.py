from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from server.adapter_key import AdapterKey
from server.batches.batch import BatchStatus
from server.batches.figures import BatchFigures
from server.catalog.jobs import JobEvent
from server.collectors import BatchCollector, ChangeCollector, DiskCollector, JobCollector, LimitCollector
from server.fine_tuning.figures import JobFigures
from server.fine_tuning.job import Status


def samples(collector: Collector) -> dict[tuple[str, ...], float]:
    """What it tells: by name and the values of all labels but the model's."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name.removeprefix("hotswap_"), *(v for k, v in sorted(sample.labels.items()) if k != "model")): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
    }


def test_the_newest_changes_are_told() -> None:
    changes = ChangeCollector("base", 2)
    first, second = AdapterKey("a", 1, "d"), AdapterKey("a", 2, "d")
    changes.note(first, "load", 10.0)
    changes.note(second, "activate", 20.0)
    changes.note(first, "rollback", 30.0)
    changes.note(second, "activate", 40.0)
    name = "adapter_change_timestamp_seconds"
    assert samples(changes) == {(name, "rollback", "a", "1"): 30.0, (name, "activate", "a", "2"): 40.0}
    changes.clear()
    assert samples(changes) == {}


def test_jobs() -> None:
    figures = JobFigures()
    figures.counts = {"succeeded": 3, "running": 1}
    figures.job_ended(Status.FAILED)
    figures.begin("ftjob-1")
    told = samples(JobCollector("base", figures))
    assert told[("fine_tuning_jobs", "succeeded")] == 3
    assert told[("fine_tuning_jobs", "queued")] == 0
    assert told[("fine_tuning_jobs_ended_total", "failed")] == 1
    assert told[("fine_tuning_jobs_ended_total", "succeeded")] == 0
    assert told[("fine_tuning_progress_ratio", "ftjob-1")] == 0
    assert not [key for key in told if key[0] == "fine_tuning_loss"]
    steps = {"total_steps": 8}
    events = [
        JobEvent(message="", type="metrics", data={"step": 2, "train_loss": 0.5, **steps}),
        JobEvent(message="", type="metrics", data={"step": 2, "valid_loss": 0.75, **steps}),
    ]
    figures.told("ftjob-1", events, 100)
    told = samples(JobCollector("base", figures))
    assert told[("fine_tuning_progress_ratio", "ftjob-1")] == 0.25
    assert told[("fine_tuning_loss", "ftjob-1", "training")] == 0.5
    assert told[("fine_tuning_loss", "ftjob-1", "validation")] == 0.75
    assert told[("fine_tuning_tokens_total",)] == 100
    assert 0 < told[("fine_tuning_seconds_total",)] <= figures.seconds
    figures.end("ftjob-1")
    assert not [key for key in samples(JobCollector("base", figures)) if "ftjob-1" in key]


def test_batches() -> None:
    figures = BatchFigures()
    figures.counts = {"in_progress": 2}
    figures.oldest = time.time() - 100
    with figures.doing("batch_1", 5), figures.doing("batch_2", 3), figures.sending():
        figures.answered("batch_1", "completed")
        figures.answered("batch_2", "failed")
        told = samples(BatchCollector("base", figures))
    figures.batch_ended(BatchStatus.EXPIRED)
    assert told[("batches", "in_progress")] == 2
    assert told[("batches", "failed")] == 0
    assert told[("batches_requests_running",)] == 1
    assert told[("batches_requests_waiting",)] == 5
    assert [told[("batches_requests_total", one)] for one in ("completed", "failed", "expired")] == [1, 1, 0]
    assert 100 <= told[("batches_oldest_seconds",)] < 200
    figures.oldest = None
    told = samples(BatchCollector("base", figures))
    assert told[("batches_ended_total", "expired")] == 1
    assert {told[(f"batches_{name}",)] for name in ("requests_running", "requests_waiting", "oldest_seconds")} == {0}


def test_the_disk(tmp_path: Path) -> None:
    told = samples(DiskCollector("base", tmp_path))
    assert 0 < told[("disk_free_bytes",)] < told[("disk_size_bytes",)]
    assert samples(DiskCollector("base", tmp_path / "gone")) == {}


@pytest.mark.parametrize("store", [0, 7])
def test_limits_that_are_none_have_no_row(store: int) -> None:
    told = samples(LimitCollector("base", requests=9, adapter_bytes={"device": 5, "store": store}))
    assert told.pop(("adapter_limit_bytes", "store"), 0) == store
    assert told == {("requests_limit",): 9, ("adapter_limit_bytes", "device"): 5}
