"""The life of a process that works on what nobody vouches for."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server.text.sandbox_process import NotStartedError, ProcessEndedError, SandboxProcess
from server.text.template_frames import encode_job

ENDLESS = b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
LIMITS = ["--megabytes", "256", "--seconds", "30", "--max-chars", "100"]


def test_closing_ends_one_that_is_just_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, go_on, start = threading.Event(), threading.Event(), subprocess.Popen

    def popen(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        starting.set()
        go_on.wait(10)
        return start(*args, **options)

    process = SandboxProcess("server.text.template_worker", LIMITS, wall_seconds=30, max_reply=1000, first=ENDLESS)
    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", popen)
            asked = pool.submit(process.ask, encode_job([], {}))
            assert starting.wait(10)
            closed = pool.submit(process.close)
            threading.Event().wait(0.05)  # it waits for the start
            go_on.set()
            closed.result(10)
        with pytest.raises((NotStartedError, ProcessEndedError)):
            asked.result(10)
    assert process.child is None
    with pytest.raises(NotStartedError, match="shutting down"):
        process.ask(b"")
