"""The rivals that are measured beside hotswap: llama.cpp's server and vLLM's CPU build.

How to get them is in benchmarks/README.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

from bases.default_base import default_gguf
from benchmarks.speed.loads import CACHE_TOKENS
from benchmarks.speed.servers import Endpoint, Server, ServerError, Starter, Work, running
from trainer.serving.local_server import free_port

CONVERTER = "convert_lora_to_gguf.py"
_SETS = frozenset({"none", "one", "sixteen"})
_VLLM_BLOCK = 128  # its default on CPUs
_CORES = os.cpu_count() or 1


def missing(llama_server: Path | None, llama_source: Path | None, vllm: Path | None) -> str | None:
    """What keeps the rivals so named from being run, in a line; None when they can be."""
    if llama_server is None and vllm is None:
        return "no rival is named: give LLAMA_SERVER and LLAMA_SOURCE, or VLLM, or all (benchmarks/README.md)"
    if llama_server is not None:
        if not os.access(llama_server, os.X_OK) or llama_server.is_dir():
            return f"LLAMA_SERVER: {llama_server} is not a program"
        if llama_source is None or not (llama_source / CONVERTER).is_file():
            return f"LLAMA_SOURCE: no {CONVERTER} in {llama_source or 'a folder that is not named'}"
    if vllm is not None and not (vllm / "bin" / "vllm").is_file():
        return f"VLLM: no bin/vllm in {vllm}"
    return None


def llama_cpp(binary: Path, source: Path, gguf: Path) -> Server:
    """llama.cpp's server on the base in ``gguf``; adapters go through the converter in its source tree ``source``."""
    done = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False, env=_beside(binary))
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "version" in line]
    return Server("llama.cpp", f"{lines[0] if lines else binary}, {gguf.name}", _llama_cpp(binary, source, gguf), _SETS)


def _llama_cpp(binary: Path, source: Path, gguf: Path) -> Starter:
    @contextmanager
    def start(work: Work, adapters: str) -> Iterator[Endpoint]:
        port = free_port()
        command = [str(binary), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-t", str(_CORES), "-tb", str(_CORES), "-np", "32", "-c", str(CACHE_TOKENS), "--no-cache-prompt"]
        packages = work.adapters[adapters]
        if packages:
            converted = [str(_gguf_lora(source, work.base, package)) for package in packages]
            command += ["--lora", ",".join(converted)]
        names = tuple(path.name for path in packages)
        fields = {name: {"lora": [{"id": number, "scale": 1.0}]} for number, name in enumerate(names)}
        if packages:
            fields["base"] = {"lora": [{"id": 0, "scale": 0.0}]}  # without it every adapter is applied at once
        with running(command, _beside(binary), work.logs / f"llama-{adapters}.log", port) as process:
            yield Endpoint(f"http://127.0.0.1:{port}", "", "base", names, process, fields)

    return start


def _beside(binary: Path) -> dict[str, str]:
    """This environment, with the libraries that lie beside ``binary``."""
    return {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}


def _gguf_lora(source: Path, base: Path, package: Path) -> Path:
    """``package`` as llama.cpp reads it, in a file beside it; one that is there is taken as it is."""
    target = package.with_name(f"{package.name}.gguf")
    if not target.is_file():
        command = [sys.executable, str(source / CONVERTER), "--base", str(base), "--outfile", str(target), str(package)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerError(f"{CONVERTER} did not convert {package}: {done.stderr.strip()}")
    return target


def default_base_file(folder: Path) -> Path:
    """The GGUF that the default base comes from, fetched into ``folder`` once."""
    for there in folder.glob("*.gguf"):
        return there
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        fetched = default_gguf(Path(staging))
        return Path(shutil.move(fetched, folder / fetched.name))


def vllm(environment: Path) -> Server:
    """vLLM's CPU build out of the virtual environment in ``environment``."""
    packages = [str(path) for path in environment.glob("lib/python3.*/site-packages")]
    versions = [f"{one.name} {one.version}" for one in distributions(path=packages) if one.name.startswith("vllm")]
    return Server("vLLM", f"{versions[0] if versions else environment}, bf16", _vllm(environment), _SETS)


def _vllm(environment: Path) -> Starter:
    @contextmanager
    def start(work: Work, adapters: str) -> Iterator[Endpoint]:
        port = free_port()
        packages = work.adapters[adapters]
        command = [str(environment / "bin" / "vllm"), "serve", str(work.base), "--served-model-name", "base"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", "1024"]
        command += ["--max-num-seqs", "32", "--no-enable-prefix-caching", "--block-size", str(_VLLM_BLOCK)]
        command += ["--num-gpu-blocks-override", str(CACHE_TOKENS // _VLLM_BLOCK + 1)]  # one block is for padding
        if packages:
            command += ["--enable-lora", "--max-loras", str(len(packages)), "--max-lora-rank", "8", "--lora-modules"]
            command += [f"{path.name}={path}" for path in packages]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, in place of a share of all memory; the blocks above take less
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{_CORES - 1}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "LD_PRELOAD": _preloaded(environment),
        }
        log = work.logs / f"vllm-{adapters}.log"
        with running(command, {**os.environ, **settings}, log, port) as process:
            names = tuple(path.name for path in packages)
            yield Endpoint(f"http://127.0.0.1:{port}", "", "base", names, process)

    return start


def _preloaded(environment: Path) -> str:
    """Without these vLLM is half as fast: tcmalloc where the system has it, and Intel's OpenMP."""
    found = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    tcmalloc = [line.split()[-1] for line in found.splitlines() if "libtcmalloc_minimal.so.4" in line]
    return ":".join([*tcmalloc[:1], str(environment / "lib" / "libiomp5.so")])
