"""One run of a job: its folder, the trainer's process, what is told of it, the gate, and the adapter that is published.

It may be stopped at any moment, and taken up again from the last checkpoint by another start of the server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from adapters.errors import AdapterError
from adapters.names import checkpoint_name
from adapters.package.manifest import read_manifest
from server.catalog.background import set_within
from server.catalog.database.asking import ask
from server.catalog.database.jobs import JobTable
from server.catalog.files import Purpose
from server.catalog.jobs import JobEvent, JobRow
from server.catalog.store import disk_errors
from server.errors import ServerError
from server.files.library import FileLibrary, UnknownFileError
from server.fine_tuning.checkpoints import KeptCheckpoint, figures_at, kept_checkpoints, loss_before, result_step
from server.fine_tuning.dataset import (
    START,
    TRAINING_FILE,
    VALIDATION_FILE,
    write_rows,
)
from server.fine_tuning.figures import JobFigures
from server.fine_tuning.job import Checkpoint, FineTuningJob, JobFailedError, Status, job_of, with_job
from server.fine_tuning.process import TRAINER, TrainerProcess
from server.fine_tuning.progress import (
    METRICS_FILE,
    MetricsReader,
    is_summary,
    metrics_event,
    results_table,
    trained_tokens,
)
from server.fine_tuning.settings import RunFiles, RunLimits, TunedBase, method_of, run_config
from server.fine_tuning.workplace import Workplace

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.3  # between two looks at the process and its records
WISH_SECONDS = 2.0  # between two at the catalog, where another server may have noted what the owner wants
LIMITS_SECONDS = 2.0
PAUSE_SECONDS = 600.0  # for a step and its checkpoint
STOP_SECONDS = 10.0  # as long as a server that ends waits for them
CONFIG_FILE, OUTPUT, PACKAGE = "config.yaml", "output", "adapter"


class JobStoppedError(Exception):
    """The job is not this run's any more: its owner cancelled it."""


@dataclass(frozen=True)
class RunTools:
    """What every run works with. ``fetch`` copies the package of an adapter version and returns its configuration,
    ``publish`` serves one under a name, and ``withdraw`` no longer.
    """

    table: JobTable
    files: FileLibrary
    workplace: Workplace
    base: Callable[[], TunedBase]
    limits: RunLimits
    fetch: Callable[[str, Path], Awaitable[dict[str, Any]]]
    publish: Callable[[str, Path], Awaitable[None]]
    withdraw: Callable[[str], Awaitable[None]]
    common: Mapping[str, Any] = field(default_factory=dict)
    trainer: Sequence[str] = TRAINER
    gated: bool = True
    changed: Callable[[], None] = lambda: None


class JobRun:
    """The run of one job that is this server's to do, which ``figures`` know of."""

    def __init__(self, row: JobRow, tools: RunTools, figures: JobFigures) -> None:
        self.id = row.id
        self._figures = figures
        self._row = row
        self._tools = tools
        self._folder = tools.workplace.of(row.id)
        self._look = asyncio.Event()  # at once
        self._process: TrainerProcess | None = None
        self._published: list[str] = []
        self._first: tuple[int, float] | None = None  # step that was seen first, and when
        self._estimated = float("-inf")

    def look(self) -> None:
        """The job was changed in the catalog."""
        self._look.set()

    async def run(self) -> None:
        """Do the job. Cancelled, it leaves the process stopped and the job as one that runs, to be taken up again."""
        try:
            await self._run()
        except JobStoppedError:
            await self._forget()
        except JobFailedError as error:
            await self._fail(error)
        except (ServerError, AdapterError) as error:
            await self._fail(JobFailedError(getattr(error, "code", None) or "internal", str(error)))
        finally:
            if self._process is not None:
                await asyncio.shield(self._process.stop(STOP_SECONDS))

    async def _run(self) -> None:
        config = await self._prepared()
        if not await self._trained(config):
            return
        records = await asyncio.to_thread(MetricsReader(self._folder / OUTPUT / METRICS_FILE).read)
        results = await self._results(records)
        try:
            await self._check_gate(records)
            await self._write(lambda job: job, events=[])  # unless it was cancelled meanwhile
            await self._publish(job_of(self._row).name, self._folder / OUTPUT / PACKAGE)
        except (JobFailedError, ServerError, AdapterError):
            await self._write(lambda job: msgspec.structs.replace(job, result_files=(results,)))
            raise
        try:
            await self._succeed(records, results, await self._publish_checkpoints(records))
        except JobStoppedError:  # it was cancelled while it was published
            for name in self._published:
                await self._tools.withdraw(name)
            raise

    # ---- before ----

    async def _prepared(self) -> Path:
        """The configuration of the run, beside its rows. Raises JobFailedError."""
        job, tools = job_of(self._row), self._tools
        await asyncio.to_thread(tools.workplace.make, self.id)
        target = self._folder / CONFIG_FILE
        if not target.is_file():
            await self._take_rows(job)
            files = await self._run_files(job)
            config = run_config(job, tools.base(), files, self._folder, tools.common)
            await asyncio.to_thread(self._write_config, config, target)
            steps = config["training"]["epochs"] * -(-files.rows // config["training"]["batch_size"])
            await self._write(lambda job: msgspec.structs.replace(job, steps=steps))
        return target

    async def _take_rows(self, job: FineTuningJob) -> None:
        """Copies of the files: their owner may delete them."""
        for id, name in ((job.training_file, TRAINING_FILE), (job.validation_file, VALIDATION_FILE)):
            if id is not None:
                try:
                    source = await self._tools.files.path(await self._tools.files.get(id, self._row.owner))
                except UnknownFileError as error:
                    raise JobFailedError("file_not_found", f"the file {id} was deleted before the job began") from error
                await asyncio.to_thread(write_rows, source, self._folder / name)

    async def _run_files(self, job: FineTuningJob) -> RunFiles:
        training = self._folder / TRAINING_FILE
        lines = await asyncio.to_thread(lambda: training.read_bytes().count(b"\n"))
        first = await asyncio.to_thread(_first_line, training)
        start, method, form = None, None, None
        if job.start is not None:
            start = self._folder / START
            method = method_of(await self._tools.fetch(job.start, start))
            manifest = await asyncio.to_thread(read_manifest, start)
            form = manifest.data.tools if manifest is not None and manifest.data is not None else None
        return RunFiles(
            rows=lines,
            kind="completion" if "completion" in first else "chat",
            training=training,
            validation=self._folder / VALIDATION_FILE if job.validation_file is not None else None,
            start=start,
            method=method or {},
            tools=form,
        )

    @disk_errors()
    def _write_config(self, config: Mapping[str, Any], target: Path) -> None:
        if (template := self._tools.base().template) is not None:
            (self._folder / "template.jinja").write_text(template, encoding="utf-8")
        part = target.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(config)))  # JSON is YAML
        part.rename(target)

    # ---- training ----

    async def _trained(self, config: Path) -> bool:
        """Train to the end; False when it was paused instead. Raises JobFailedError, JobStoppedError."""
        flags = await asyncio.to_thread(self._flags)
        reader = MetricsReader(self._folder / OUTPUT / METRICS_FILE)
        if "--resume" not in flags:
            (self._folder / OUTPUT / METRICS_FILE).unlink(missing_ok=True)
        seen = await self._last_step()
        command = [*self._tools.trainer, str(config), "--quiet", *flags]
        limits, device = self._tools.limits, self._tools.base().device
        self._process = await TrainerProcess.start(command, self._folder, limits, device)
        checked = wished = time.monotonic()
        while not await self._process.wait(0):
            now = time.monotonic()
            if now - wished >= WISH_SECONDS or self._look.is_set():
                wished = now
                self._look.clear()
                if await self._paused():
                    return False
            if now - checked >= LIMITS_SECONDS:
                checked = now
                await asyncio.to_thread(self._process.check_limits)
            seen = await self._tell(reader, seen)
            await set_within(self._look, LOOK_SECONDS)
        await self._tell(reader, seen)
        if self._process.code != 0:
            raise self._process.failure()
        return True

    def _flags(self) -> list[str]:
        """Whether the trainer goes on with what there is, or begins (anew)."""
        output = self._folder / OUTPUT
        if any((path / "trainer_state.json").is_file() for path in output.glob("checkpoint-*")):
            return ["--resume"]
        return ["--overwrite"] if (output / CONFIG_FILE).is_file() else []

    async def _last_step(self) -> int:
        """The last step that was told of, in an earlier start."""
        events = await ask(self._tools.table.events, self.id, limit=20)
        return max((int(event.data["step"]) for event in events if event.type == "metrics" and event.data), default=-1)

    async def _tell(self, reader: MetricsReader, seen: int) -> int:
        """Tell of steps after ``seen``; returns the last one."""
        records = await asyncio.to_thread(reader.read)
        steps = job_of(self._row).steps
        events = [
            event
            for record in records
            if record["step"] > seen or ("eval_loss" in record and record["step"] >= seen and "loss" not in record)
            if (event := metrics_event(record, steps)) is not None
        ]
        if not events:
            return seen
        last = max(int(event.data["step"]) for event in events if event.data)
        await ask(self._tools.table.tell, self.id, events)
        self._figures.told(self.id, events, trained_tokens([record for record in records if record["step"] > seen]))
        self._tools.changed()
        await self._estimate(last, steps)
        return max(seen, last)

    async def _estimate(self, step: int, steps: int) -> None:
        """Say when the run will end, as it goes."""
        if not self._first:
            self._first = (step, time.monotonic())
            return
        began_step, began = self._first
        now = time.monotonic()
        if step <= began_step or now - self._estimated < 10.0:
            return
        self._estimated = now
        left = (now - began) / (step - began_step) * max(steps - step, 0)
        await self._write(lambda job: msgspec.structs.replace(job, estimated_finish=time.time() + left))

    async def _paused(self) -> bool:
        """Whether the owner wanted a pause, which the process makes now. Raises JobStoppedError."""
        row = await ask(self._tools.table.get, self.id)
        if row is None or row.status != Status.RUNNING:
            raise JobStoppedError
        if row.wish != "pause":
            return False
        assert self._process is not None
        await self._process.stop(PAUSE_SECONDS)
        if self._process.code == 0:
            return False  # it had come to its end
        await self._change(
            lambda row: msgspec.structs.replace(row, status=Status.PAUSED.value, wish=""),
            [JobEvent(message="Job paused")],
        )
        return True

    # ---- after ----

    async def _results(self, records: list[dict[str, Any]]) -> str:
        """Keep the table of the run as a file of the owner's; returns its id."""
        path = self._folder / "step_metrics.csv"
        await asyncio.to_thread(path.write_bytes, results_table(records))
        made = await self._tools.files.add(
            path, owner=self._row.owner, filename="step_metrics.csv", purpose=Purpose.RESULTS, check=False
        )
        return made.id

    async def _check_gate(self, records: list[dict[str, Any]]) -> None:
        """Raise JobFailedError when the result is no better on the validation file than what training began with."""
        before = loss_before(records)
        after = next((r.get("validation_loss") for r in reversed(records) if is_summary(r)), None)
        if not self._tools.gated or before is None or after is None or after < before:
            return
        started = job_of(self._row).start or "the base"
        raise JobFailedError(
            "gate_not_passed",
            f"the result was not published: its loss on the validation file is {after:.4f}, and that of {started} "
            f"{before:.4f}; try another learning_rate_multiplier, more epochs, or more rows",
        )

    async def _publish(self, name: str, package: Path) -> None:
        await self._tools.publish(name, package)
        self._published.append(name)

    async def _publish_checkpoints(self, records: list[dict[str, Any]]) -> tuple[Checkpoint, ...]:
        """Serve those that were kept and that the gate lets through, beside the result, which is one of them.

        One that cannot be served is told of, and left out. Raises JobStoppedError.
        """
        job, now = job_of(self._row), time.time()
        last = result_step(records, job.steps)
        served = [Checkpoint(name=job.name, step=last, created=now, figures=figures_at(records, last))]
        for kept in await asyncio.to_thread(kept_checkpoints, self._folder / OUTPUT, records):
            if kept.step == last or not self._passes(kept, records):
                continue
            await self._write(lambda job: job)  # unless it was cancelled meanwhile
            name = checkpoint_name(job.name, kept.step)
            try:
                await self._publish(name, kept.package)
            except (ServerError, AdapterError) as error:
                said = f"The checkpoint of step {kept.step} is not served: {error}"
                await self._write(lambda job: job, [JobEvent(message=said, level="warn")])
                continue
            served.append(Checkpoint(name=name, step=kept.step, created=now, figures=kept.figures))
        return tuple(sorted(served, key=lambda one: one.step))

    def _passes(self, kept: KeptCheckpoint, records: list[dict[str, Any]]) -> bool:
        before, after = loss_before(records), kept.figures.get("valid_loss")
        return not self._tools.gated or before is None or after is None or after < before

    async def _succeed(self, records: list[dict[str, Any]], results: str, checkpoints: tuple[Checkpoint, ...]) -> None:
        name = job_of(self._row).name

        def settle(row: JobRow) -> JobRow:
            job = msgspec.structs.replace(
                job_of(row),
                finished=time.time(),
                trained_tokens=trained_tokens(records),
                checkpoints=checkpoints,
                result_files=(results,),
            )
            return msgspec.structs.replace(with_job(row, job, Status.SUCCEEDED), wish="")

        told = [
            JobEvent(message=f"New fine-tuned model created: {name}", data={"model": name}),
            JobEvent(message="The job has successfully completed"),
        ]
        await self._change(settle, told)
        self._figures.job_ended(Status.SUCCEEDED)
        await self._forget()

    async def _fail(self, error: JobFailedError) -> None:
        logger.warning("fine-tuning job %s failed: %s", self.id, error)

        def settle(row: JobRow) -> JobRow:
            job = msgspec.structs.replace(job_of(row), finished=time.time(), error=error.failure)
            return msgspec.structs.replace(with_job(row, job, Status.FAILED), wish="")

        data = msgspec.to_builtins(error.failure)
        try:
            await self._change(settle, [JobEvent(message=f"The job failed: {error}", level="error", data=data)])
            self._figures.job_ended(Status.FAILED)
        except JobStoppedError:
            logger.debug("job %s was cancelled before it failed", self.id)
        await self._forget()

    async def _forget(self) -> None:
        """Nothing of the job's folder is of use any more."""
        if self._process is not None:
            await self._process.kill()
        await asyncio.to_thread(self._tools.workplace.remove, self.id)

    # ---- the catalog ----

    async def _write(
        self, work: Callable[[FineTuningJob], FineTuningJob], events: list[JobEvent] | None = None
    ) -> None:
        await self._change(lambda row: with_job(row, work(job_of(row))), events or [])

    async def _change(self, mutate: Callable[[JobRow], JobRow], events: list[JobEvent]) -> None:
        """Change the job, as long as it is this run's. Raises JobStoppedError."""

        def guarded(row: JobRow) -> JobRow:
            if row.status != Status.RUNNING:
                raise JobStoppedError
            return mutate(row)

        changed = await ask(self._tools.table.change, self.id, guarded, events)
        if changed is None:
            raise JobStoppedError
        self._row = changed
        self._tools.changed()


def _first_line(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        row = msgspec.json.decode(file.readline())
    assert isinstance(row, dict)
    return row
