"""The servers that are measured: hotswap, and rivals where they are installed. Each is started alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from trainer.serving.local_server import free_port, start_server, wait_until_ready

START_SECONDS = 600


@dataclass(frozen=True)
class Endpoint:
    """A ready server: ``base`` and ``adapters`` are the names that its API has for them."""

    url: str
    key: str
    base: str
    adapters: tuple[str, ...]
    process: psutil.Process

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
    """One that can be measured: ``start`` it with one of the sets of adapters."""

    name: str
    start: Starter
    sets: frozenset[str]


def hotswap(options: tuple[str, ...]) -> Starter:
    """``hotswap serve`` with ``options``."""

    @contextmanager
    def start(work: Work, adapters: str) -> Iterator[Endpoint]:
        packages = work.adapters[adapters]
        given = [f"--adapter={path.name}={path}" for path in packages]
        common = ["--model", str(work.base), "--threads", str(os.cpu_count() or 1), "--no-prefix-caching"]
        log = work.logs / f"hotswap-{adapters}.log"
        with start_server([*common, "--log-level", "warning", *given, *options], log) as server:
            asyncio.run(wait_until_ready(server, START_SECONDS))
            names = tuple(path.name for path in packages)
            yield Endpoint(server.url, server.key, work.base.name, names, psutil.Process(server.process.pid))

    return start


def cache_of(base: Path, tokens: int) -> tuple[str, ...]:
    """Options of ``hotswap serve`` for keys and values of ``tokens`` in fp16, of a base of Llama's shape."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    numbers = tokens * config["num_hidden_layers"] * config["num_key_value_heads"] * width * 2
    return ("--kv-dtype", "float16", "--kv-cache-gb", f"{(numbers * 2 + 1) / 1e9:.9f}")


def llama_cpp(binary: Path, gguf: Path, loras: Path) -> Starter:
    """llama.cpp's server on the GGUF that the base came from; ``loras`` holds the adapters as GGUF, NAME.gguf each.

    One adapter is applied to every request. Several run one after another there, and need a field of its own in each
    request, so they are not asked.
    """

    @contextmanager
    def start(work: Work, adapters: str) -> Iterator[Endpoint]:
        port = free_port()
        threads = str(os.cpu_count() or 1)
        command = [str(binary), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), "-t", threads]
        command += ["-tb", threads, "-np", "32", "-c", "40960", "--no-cache-prompt", "--no-ui"]
        for path in work.adapters[adapters]:
            command += ["--lora", str(loras / f"{path.name}.gguf")]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
        with _running(command, environment, work.logs / f"llama-{adapters}.log", port) as process:
            yield Endpoint(f"http://127.0.0.1:{port}", "", "base", ("base",) * len(work.adapters[adapters]), process)

    return start


def vllm(environment: Path) -> Starter:
    """vLLM's CPU build out of the virtual environment in ``environment``."""

    @contextmanager
    def start(work: Work, adapters: str) -> Iterator[Endpoint]:
        port = free_port()
        packages = work.adapters[adapters]
        command = [str(environment / "bin" / "vllm"), "serve", str(work.base), "--served-model-name", "base"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "2048"]
        command += ["--max-num-seqs", "32", "--no-enable-prefix-caching"]
        if packages:
            command += ["--enable-lora", "--max-loras", str(len(packages)), "--max-lora-rank", "8", "--lora-modules"]
            command += [f"{path.name}={path}" for path in packages]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": _preloaded(environment),
        }
        log = work.logs / f"vllm-{adapters}.log"
        with _running(command, {**os.environ, **settings}, log, port) as process:
            names = tuple(path.name for path in packages)
            yield Endpoint(f"http://127.0.0.1:{port}", "", "base", names, process)

    return start


def _preloaded(environment: Path) -> str:
    """Without these vLLM is half as fast: tcmalloc where the system has it, and Intel's OpenMP."""
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    tcmalloc = [line.split()[-1] for line in found.splitlines() if "libtcmalloc_minimal.so.4" in line]
    return ":".join([*tcmalloc[:1], str(environment / "lib" / "libiomp5.so")])


@contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path, port: int) -> Iterator[psutil.Process]:
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
            raise RuntimeError(f"a server ended at its start; its log is {log}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"a server was not ready after {START_SECONDS} s; its log is {log}")
