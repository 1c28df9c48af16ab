"""``hotswap serve`` in a process of its own: its lines, its address, its children, its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

COMMAND = [sys.executable, "-m", "hotswap", "serve", "--port", "0", "--quantize", "none", "--kv-cache-gb", "0.02"]


@contextmanager
def serving(*argv: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command, and the lines it has printed; killed in the end if still there."""
    env = os.environ | environ
    with subprocess.Popen(
        [*COMMAND, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines: list[str] = []
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.startswith("  talk"):
                    break
            yield process, lines
        finally:
            process.kill()


def url_of(lines: list[str]) -> str:
    return next(line.split()[1] for line in lines if line.startswith("  listening"))


def client_of(lines: list[str]) -> httpx.Client:
    return httpx.Client(base_url=url_of(lines), timeout=60, verify=False)


def children(process: subprocess.Popen[str]) -> list[Any]:
    return list(psutil.Process(process.pid).children(recursive=True))


@contextmanager
def standing_still(engine: psutil.Process) -> Iterator[None]:
    """The engine computes nothing meanwhile, so that no answer ends: shorter than --engine-timeout."""
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@contextmanager
def starting(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """The command, not waited for, and the first of a group of processes, as in a terminal."""
    with subprocess.Popen(
        [*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
