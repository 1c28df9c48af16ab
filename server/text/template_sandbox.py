"""The processes that render chat templates of adapters: one a template, killed when it takes too much.

Templates of different adapters so never wait for each other, and what one does to its process harms no other. Blocks:
call it off the event loop. Safe from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from server.errors import EngineUnavailableError, InvalidRequestError
from server.text.template_frames import Answer, Failure, encode_job, recv_frame, send_frame


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
START_SECONDS = 60.0  # for Python to start, on a machine that has other things to do
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ")  # of the environment: it holds keys, too


class _TemplateProcess:
    """One template and the process that renders it, started again after it has ended."""

    def __init__(self, source: str, limits: SandboxLimits) -> None:
        self.users = 0
        self._source = source
        self._limits = limits
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    def render(self, job: bytes) -> Answer:
        """Have one job answered. Raises as ``TemplateSandbox.render``."""
        with self._lock:
            try:
                sock = self._sock or self._start()
            except OSError as error:
                logger.error("no process for a chat template: %s; it ended with status %s", error, self.end(grace=1.0))
                raise EngineUnavailableError(
                    "there is no process for the adapter's chat template; try again"
                ) from error
            try:
                answer = self._ask(sock, job)
            except TimeoutError:
                self.end()
                raise TemplateOverrunError(self._too_slow) from None
            if answer is None:
                raise TemplateOverrunError(self._ending(self.end(grace=1.0)))
            if answer.failure is Failure.MEMORY:
                self.end()
            return answer

    def close(self) -> None:
        """End the process whatever it does; who waits for it is told so."""
        if (child := self._child) is not None:
            child.kill()
        with self._lock:
            self.end()

    def end(self, grace: float = 0.0) -> int | None:
        """Let go of the process. One that does not end by itself in ``grace`` seconds is killed; returns its status."""
        child, sock, self._child, self._sock = self._child, self._sock, None, None
        if sock is not None:
            sock.close()
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(grace)
        child.kill()
        return child.wait()

    def _ask(self, sock: socket.socket, job: bytes) -> Answer | None:
        """The answer to ``job``; None when the process has ended. Raises TimeoutError."""
        deadline = time.monotonic() + self._limits.wall_seconds
        sock.settimeout(self._limits.wall_seconds)
        try:
            send_frame(sock, job)
            reply = recv_frame(sock, deadline, max_bytes=8 * self._limits.max_chars + 4096)
            return None if reply is None else msgspec.json.decode(reply, type=Answer)
        except TimeoutError:
            raise
        except (OSError, msgspec.DecodeError):
            return None

    def _start(self) -> socket.socket:
        """Start the process and give it the template. Raises OSError."""
        self._sock, theirs = socket.socketpair()
        limits = self._limits
        # -P: the working directory may hold folders that are named like our packages.
        command = [sys.executable, "-P", "-m", "server.text.template_worker", "--fd", str(theirs.fileno())]
        command += ["--megabytes", str(limits.megabytes), "--seconds", str(limits.seconds)]
        with theirs:
            self._child = subprocess.Popen(
                [*command, "--max-chars", str(limits.max_chars)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            )
        if recv_frame(self._sock, time.monotonic() + START_SECONDS) is None:
            raise OSError("the process did not start")
        send_frame(self._sock, self._source.encode())
        return self._sock

    @property
    def _too_slow(self) -> str:
        return f"takes longer than the {self._limits.seconds:g} seconds that it may"

    def _ending(self, status: int | None) -> str:
        """What became of a render whose process ended without an answer."""
        logger.info("the process of a chat template ended with status %s", status)
        if status == -signal.SIGXCPU:
            return self._too_slow
        return f"ended its process: it is nested too deeply, or needs more than {self._limits.megabytes} MB of memory"
