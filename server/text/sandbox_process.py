"""A process of ours that works on what nobody vouches for, one job after the other; killed when it takes too long.

It is started for its first job, and again after it has ended. Blocks: call it off the event loop. Safe from any thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from server.text.template_frames import recv_frame, send_frame

START_SECONDS = 60.0  # for Python to start, on a machine that has other things to do
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ")  # of the environment: it holds keys, too


class NotStartedError(Exception):
    """There is no process, for no fault of the job's."""


class ProcessEndedError(Exception):
    """The process ended without an answer, with ``status``."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"the process ended with status {status}")
        self.status = status


class SandboxProcess:
    """Runs ``python -m module`` with ``arguments``; it says by an empty frame that it has begun, and is sent ``first``.

    A reply may take ``wall_seconds`` and ``max_reply`` bytes.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        wall_seconds: float,
        max_reply: int,
        first: bytes | None = None,
    ) -> None:
        self._module, self._arguments, self._first = module, arguments, first
        self._wall_seconds, self._max_reply = wall_seconds, max_reply
        self._lock = threading.Lock()
        self._closed = False
        self.child: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    def ask(self, job: bytes) -> bytes:
        """The reply to ``job``. Raises TimeoutError, ProcessEndedError or NotStartedError; the process is gone then."""
        with self._lock:
            if self._closed:
                raise NotStartedError("the server is shutting down")
            try:
                sock = self._sock or self._start()
            except OSError as error:
                raise NotStartedError(f"{error}; it ended with status {self.end(grace=1.0)}") from error
            try:
                reply = self._reply(sock, job)
            except TimeoutError:
                self.end()
                raise
            if reply is None:
                raise ProcessEndedError(self.end(grace=1.0))
            return reply

    def close(self) -> None:
        """End the process whatever it does, for good; who waits for it is told so."""
        self._closed = True
        if (child := self.child) is not None:
            child.kill()
        with self._lock:
            self.end()

    def end(self, grace: float = 0.0) -> int | None:
        """Let go of the process. One that does not end by itself in ``grace`` seconds is killed; returns its status."""
        child, sock, self.child, self._sock = self.child, self._sock, None, None
        if sock is not None:
            sock.close()
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(grace)
        child.kill()
        return child.wait()

    def _reply(self, sock: socket.socket, job: bytes) -> bytes | None:
        """The reply; None when the process has ended. Raises TimeoutError."""
        deadline = time.monotonic() + self._wall_seconds
        sock.settimeout(self._wall_seconds)
        try:
            send_frame(sock, job)
            return recv_frame(sock, deadline, max_bytes=self._max_reply)
        except TimeoutError:
            raise
        except OSError:
            return None

    def _start(self) -> socket.socket:
        """Start the process. Raises OSError."""
        self._sock, theirs = socket.socketpair()
        # -P: the working directory may hold folders that are named like our packages.
        command = [sys.executable, "-P", "-m", self._module, "--fd", str(theirs.fileno()), *self._arguments]
        with theirs:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            )
        if self._closed:  # before there was a process to end
            self.child.kill()
        if recv_frame(self._sock, time.monotonic() + START_SECONDS) is None:
            raise OSError("the process did not start")
        if self._first is not None:
            send_frame(self._sock, self._first)
        return self._sock
