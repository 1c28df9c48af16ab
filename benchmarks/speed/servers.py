"""The servers that are measured, hotswap among them. Each is started alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.speed.loads import CACHE_TOKENS
from trainer.serving.local_server import last_line, start_server, wait_until_ready

START_SECONDS = 600


class ServerError(Exception):
    """A server did not start; the message says which and why."""


@dataclass(frozen=True)
class Endpoint:
    """A ready server: ``base`` and ``adapters`` are the names that its API has for them.

    ``fields`` are what requests for a name carry besides.
    """

    url: str
    key: str
    base: str
    adapters: tuple[str, ...]
    process: psutil.Process
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def pss_mb(self) -> float:
        """Memory of its processes, what they share counted once."""
        whole = [self.process, *self.process.children(recursive=True)]
        return float(sum(process.memory_full_info().pss for process in whole)) / 1e6


@dataclass(frozen=True)
class Work:
    """Folders: the base, the sets of adapters (``adapters[set]``, PEFT packages), and where logs go."""

    base: Path
    adapters: dict[str, tuple[Path, ...]]
    logs: Path


Starter = Callable[[Work, str], AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Server:
    """One that can be measured: ``start`` it with one of the sets of adapters. ``about`` says which one it is."""

    name: str
    about: str
    start: Starter
    sets: frozenset[str]


def hotswap(options: tuple[str, ...]) -> Server:
    """``hotswap serve`` with ``options``."""
    about = f"hotswap serve {' '.join(options)}".strip()
    if forced := os.environ.get("HOTSWAP_KERNELS"):
        about += f" with HOTSWAP_KERNELS={forced}"
    return Server("hotswap", about, _hotswap(options), frozenset({"none", "one", "sixteen", "mixed", "sized"}))


def _hotswap(options: tuple[str, ...]) -> Starter:
    @contextmanager
    def start(work: Work, adapters: str) -> Iterator[Endpoint]:
        packages = work.adapters[adapters]
        given = [f"--adapter={path.name}={path}" for path in packages]
        common = ["--model", str(work.base), "--threads", str(os.cpu_count() or 1), "--no-prefix-caching"]
        common += ["--speculation", "off"]  # a small model's greedy outputs repeat themselves, and rivals draft nothing
        if adapters == "sized":
            common += cache_of(work.base, CACHE_TOKENS)
        log = work.logs / f"hotswap-{adapters}.log"
        with start_server([*common, "--log-level", "warning", *given, *options], log) as server:
            asyncio.run(wait_until_ready(server, START_SECONDS))
            names = tuple(path.name for path in packages)
            yield Endpoint(server.url, server.key, work.base.name, names, psutil.Process(server.process.pid))

    return start


def cache_of(base: Path, tokens: int) -> list[str]:
    """Options of ``hotswap serve`` for keys and values of ``tokens`` in fp16, of a base of Llama's shape.

    Nothing is drafted: streams that begin together end together, and hold all ``tokens`` at once.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers = tokens * config["num_hidden_layers"] * config["num_key_value_heads"] * width * 2
    size = f"{(numbers * 2 + 1) / 1e9:.9f}"  # a byte more, as it is rounded down
    return ["--kv-dtype", "float16", "--kv-cache-gb", size, "--speculation", "off"]


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path, port: int) -> Iterator[psutil.Process]:
    """``command``, which serves on ``port``, ready; its output goes to ``log``.

    Raises ServerError when it ends at its start, or takes longer than START_SECONDS.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(process, port, log)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"a server ended at its start: {last_line(log)} (its log is {log})")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise ServerError(f"a server was not ready after {START_SECONDS} s; its log is {log}")
