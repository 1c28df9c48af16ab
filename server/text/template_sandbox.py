"""The processes that render chat templates of adapters: one a template, killed when it takes too much.

Templates of different adapters so never wait for each other, and what one does to its process harms no other. Blocks:
call it off the event loop. Safe from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from server.errors import EngineUnavailableError, InvalidRequestError
from server.text.sandbox_process import NotStartedError, ProcessEndedError, SandboxProcess
from server.text.template_frames import Answer, Failure, encode_job


class TemplateOverrunError(InvalidRequestError):
    """A template took more time, memory or text than it may."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the adapter's chat template {reason}", param="messages", code="chat_template_overrun")


@dataclass(frozen=True)
class SandboxLimits:
    """What one render may take: ``seconds`` of computing, a process of ``megabytes``, ``max_chars`` of text.

    ``max_processes`` are kept between renders.
    """

    seconds: float = 2.0
    megabytes: int = 256
    max_chars: int = 8 << 20
    max_processes: int = 8

    @property
    def wall_seconds(self) -> float:
        """Time by the clock, on a machine that has other things to do."""
        return 5 * self.seconds


class TemplateSandbox:
    """Renders templates that nobody vouches for."""

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()
        self._lock = threading.Lock()
        self._processes: dict[str, _TemplateProcess] = {}  # the least recently used first
        self.threads = ThreadPoolExecutor(self.limits.max_processes, thread_name_prefix="chat-template")
        self._closed = False

    def render(self, source: str, messages: Sequence[dict[str, Any]], arguments: Mapping[str, Any]) -> Answer:
        """What the template ``source`` makes of ``messages``, or what it says is wrong with them.

        Raises TemplateOverrunError, or EngineUnavailableError when there is no process for it.
        """
        limits = self.limits
        with self._process(source) as process:
            answer = process.render(encode_job(messages, arguments))
        if answer.failure is Failure.MEMORY:
            raise TemplateOverrunError(f"needs more than the {limits.megabytes} MB of memory that it may use")
        if answer.failure is Failure.LENGTH:
            raise TemplateOverrunError(f"writes more than the {limits.max_chars} characters that it may")
        return answer

    def close(self) -> None:
        """End all processes, those that render as well."""
        with self._lock:
            self._closed = True
        for process in self._processes.values():
            process.close()
        self.threads.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _process(self, source: str) -> Iterator[_TemplateProcess]:
        """The process of ``source``, in use meanwhile; idle ones that were used least make room."""
        with self._lock:
            if self._closed:
                raise EngineUnavailableError("the server is shutting down")
            process = self._processes.pop(source, None) or _TemplateProcess(source, self.limits)
            self._processes[source] = process
            process.users += 1
            surplus = len(self._processes) - self.limits.max_processes
            for other in [key for key, kept in self._processes.items() if not kept.users][: max(surplus, 0)]:
                self._processes.pop(other).end()
        try:
            yield process
        finally:
            with self._lock:
                process.users -= 1


logger = logging.getLogger(__name__)


class _TemplateProcess:
    """One template and the process that renders it."""

    def __init__(self, source: str, limits: SandboxLimits) -> None:
        self.users = 0
        self._limits = limits
        options = {"megabytes": limits.megabytes, "seconds": limits.seconds, "max-chars": limits.max_chars}
        self.process = SandboxProcess(
            "server.text.template_worker",
            [text for name, value in options.items() for text in (f"--{name}", str(value))],
            wall_seconds=limits.wall_seconds,
            max_reply=8 * limits.max_chars + 4096,
            first=source.encode(),
        )
        self.close, self.end = self.process.close, self.process.end

    def render(self, job: bytes) -> Answer:
        """Have one job answered. Raises as ``TemplateSandbox.render``."""
        try:
            answer = msgspec.json.decode(self.process.ask(job), type=Answer)
        except NotStartedError as error:
            logger.error("no process for a chat template: %s", error)
            raise EngineUnavailableError("there is no process for the adapter's chat template; try again") from error
        except TimeoutError:
            raise TemplateOverrunError(self._too_slow) from None
        except ProcessEndedError as error:
            raise TemplateOverrunError(self._ending(error.status)) from None
        except msgspec.DecodeError:
            raise TemplateOverrunError(self._ending(self.end())) from None
        if answer.failure is Failure.MEMORY:
            self.end()
        return answer

    @property
    def _too_slow(self) -> str:
        return f"takes longer than the {self._limits.seconds:g} seconds that it may"

    def _ending(self, status: int | None) -> str:
        """What became of a render whose process ended without an answer."""
        logger.info("the process of a chat template ended with status %s", status)
        if status == -signal.SIGXCPU:
            return self._too_slow
        return f"ended its process: it is nested too deeply, or needs more than {self._limits.megabytes} MB of memory"
