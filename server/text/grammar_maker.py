"""Grammars of what clients ask outputs to look like, made in other processes and kept: callable from the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from server.errors import EngineUnavailableError
from server.text.grammar_worker import Made
from server.text.grammars import MAX_CHARS, Form
from server.text.sandbox_process import NotStartedError, ProcessEndedError, SandboxProcess

logger = logging.getLogger(__name__)
MAX_JOB = 4 * MAX_CHARS


@dataclass(frozen=True)
class GrammarLimits:
    """What one grammar may take: ``seconds`` of computing, a process of ``megabytes``.

    ``processes`` work at once, and what was made last is kept, up to ``max_kept`` and ``max_kept_bytes`` of them.
    """

    seconds: float = 2.0
    megabytes: int = 768
    processes: int = 2
    max_kept: int = 256
    max_kept_bytes: int = 8 << 20

    @property
    def wall_seconds(self) -> float:
        """Time by the clock, on a machine that has other things to do."""
        return 5 * self.seconds


class GrammarMaker:
    """Makes grammars. Its processes start when they are first needed."""

    def __init__(self, limits: GrammarLimits | None = None) -> None:
        self.limits = limits or GrammarLimits()
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._kept_bytes = 0
        self._local = threading.local()
        self._processes: list[SandboxProcess] = []
        self._threads = ThreadPoolExecutor(self.limits.processes, "grammars")

    async def make(self, form: Form) -> str:
        """The grammar of ``form``, ready for the engine. Raises InvalidRequestError, or EngineUnavailableError."""
        try:
            job = msgspec.json.encode(form)
        except (ValueError, RecursionError, OverflowError):
            raise form.refusal(
                "it holds half of a surrogate pair, or a number of more than 64 bits, or is nested too deeply"
            ) from None
        if len(job) > MAX_JOB:
            raise form.refusal(f"it takes {len(job)} bytes; at most {MAX_JOB} are served")
        if (kept := self._kept.get(job)) is not None:
            self._kept.move_to_end(job)
            return kept
        grammar = await asyncio.get_running_loop().run_in_executor(self._threads, self._make, form, job)
        self._keep(job, grammar)
        return grammar

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(cancel_futures=True)

    def _keep(self, job: bytes, grammar: str) -> None:
        if job not in self._kept:
            self._kept_bytes += len(job) + len(grammar)
        self._kept[job] = grammar
        while len(self._kept) > self.limits.max_kept or self._kept_bytes > self.limits.max_kept_bytes:
            old, text = self._kept.popitem(last=False)
            self._kept_bytes -= len(old) + len(text)

    # ---- in a thread ----

    def _make(self, form: Form, job: bytes) -> str:
        try:
            made = msgspec.json.decode(self._process.ask(job), type=Made)
        except TimeoutError:
            raise form.refusal(f"it takes longer than the {self.limits.seconds:g} seconds that it may") from None
        except ProcessEndedError as error:
            logger.info("the process of a grammar ended with status %s", error.status)
            raise form.refusal(
                f"it is nested too deeply, or takes more than {self.limits.seconds:g} seconds or "
                f"{self.limits.megabytes} MB; make it simpler"
            ) from None
        except NotStartedError as error:
            logger.error("no process for a grammar: %s", error)
            raise EngineUnavailableError("there is no process to read the form of the output; try again") from error
        if made.problem:
            raise form.said(made.problem)
        return made.grammar

    @property
    def _process(self) -> SandboxProcess:
        """That of this thread."""
        found: SandboxProcess | None = getattr(self._local, "process", None)
        if found is None:
            limits = self.limits
            arguments = ["--megabytes", str(limits.megabytes), "--seconds", str(limits.seconds)]
            found = self._local.process = SandboxProcess(
                "server.text.grammar_worker", arguments, wall_seconds=limits.wall_seconds, max_reply=8 * MAX_CHARS
            )
            self._processes.append(found)
        return found
