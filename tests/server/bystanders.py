"""Somebody's stream, and somebody who polls /health: ``python -m tests.server.bystanders URL MODEL PID``.

A process of its own, because what makes large requests holds the lock of its interpreter. Each line of the input is
answered by the longest gap of the stream and the slowest answer of /health since the line before, in seconds; the
first line of the output comes once the stream runs.

Of a delay counts no more than the processor time that the server took meanwhile (process PID; for the stream its
children too, the one that took most): one that keeps others waiting because it computes takes all of it, one that gets
no processor takes none, and what other processes do to the machine is not the server's doing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).parents[2]
LONGEST = 4000  # tokens of one stream; then the next begins
TICK = 0.01  # seconds, in which processor time is counted


@dataclass(frozen=True)
class Delays:
    """What bystanders saw: the longest ``gap`` of a stream and wait for ``health``, in seconds."""

    gap: float
    health: float


class Bystanders:
    """The process, asked from another."""

    def __init__(self, lines: Iterator[str], asked: IO[str]) -> None:
        self._lines = lines
        self._asked = asked

    def during(self, act: Callable[[], object]) -> Delays:
        """What they see while ``act`` is done."""
        self._ask()
        act()
        return self._ask()

    def _ask(self) -> Delays:
        self._asked.write("\n")
        self._asked.flush()
        return Delays(*json.loads(next(self._lines)))


@contextmanager
def bystanders(url: str, model: str, server: int) -> Iterator[Bystanders]:
    """Bystanders of the ``server`` at ``url``, whose stream has begun."""
    command = [sys.executable, "-m", "tests.server.bystanders", url, model, str(server)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert next(process.stdout) == "begun\n"
            yield Bystanders(process.stdout, process.stdin)
        finally:
            process.kill()


# ---- in the process ----


class _Delay:
    """The longest of some delays, one of which may be under way."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        self._longest = 0.0
        self._begun: tuple[float, list[float]] | None = None

    def begin(self) -> None:
        self._begun = time.perf_counter(), self._processor()

    def end(self) -> None:
        self._longest, self._begun = max(self._longest, self._under_way()), None

    def take(self) -> float:
        """The longest since this was asked last; one that is under way counts as long as it is."""
        longest, self._longest = max(self._longest, self._under_way()), 0.0
        return longest

    def _under_way(self) -> float:
        if (begun := self._begun) is None:
            return 0.0
        worked = max(now - before for now, before in zip(self._processor(), begun[1], strict=True))
        return min(time.perf_counter() - begun[0], worked + TICK)

    def _processor(self) -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in self._processes]


def _stream(host: str, model: str, delay: _Delay, begun: threading.Event) -> None:
    body = {"model": model, "prompt": "x", "max_tokens": LONGEST, "ignore_eos": True, "stream": True}
    while True:
        with closing(HTTPConnection(host, timeout=60)) as http:
            http.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            response = http.getresponse()
            assert response.status == 200
            while response.read1():
                delay.end()
                delay.begin()
                begun.set()
            delay.end()


def _poll(host: str, delay: _Delay) -> None:
    with closing(HTTPConnection(host, timeout=60)) as http:
        while True:
            time.sleep(0.01)
            delay.begin()
            http.request("GET", "/health")
            with http.getresponse() as response:
                response.read()
                assert response.status == 200
            delay.end()


def _thread(work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        finally:  # it never ends by itself; whoever asks next is not answered
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()


def main(url: str, model: str, server: str) -> None:
    """Answer lines until the input ends."""
    process = psutil.Process(int(server))
    host, begun = urlsplit(url).netloc, threading.Event()
    gap, health = _Delay([process, *process.children(recursive=True)]), _Delay([process])
    _thread(lambda: _stream(host, model, gap, begun))
    _thread(lambda: _poll(host, health))
    assert begun.wait(60)
    _tell("begun")
    for _ in sys.stdin:
        _tell(json.dumps([gap.take(), health.take()]))


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
