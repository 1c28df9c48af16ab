"""The cache of imported bases, and the import of a GGUF file into it.

Each base is a directory that appears whole, by a single rename, and records where it came from. Two imports at once
take turns; the second finds the first one's result. It does not know who will load the model. Imports no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bases.errors import BaseModelError
from bases.finding import gguf_base_dir

SOURCE_FILE = "source.json"
CONVERSION = 2  # of GGUF files into bases; what an earlier one made is imported anew
Progress = Callable[[str], None]


def is_complete(directory: Path, needed: Iterable[str] = ("config.json",)) -> bool:
    """Whether ``directory`` holds a finished import with the ``needed`` files, unchanged in size since."""
    try:
        source = json.loads((directory / SOURCE_FILE).read_text(encoding="utf-8"))
        sizes = source["bytes"]
        return source["conversion"] == CONVERSION and all(
            (directory / name).stat().st_size == sizes[name] for name in {*needed, *sizes}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build_once(
    target: Path, complete: Callable[[Path], bool], build: Callable[[Path], Path], progress: Progress
) -> Path:
    """Make sure that ``target`` is complete, and return it.

    ``build`` is given an empty folder to work in, and returns the directory that is to become ``target``.
    """
    if complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(target.parent / f".{target.name}.lock", progress):
        if complete(target):
            return target
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
            built = build(Path(staging))
            shutil.rmtree(target, ignore_errors=True)  # only an incomplete one can be there
            built.rename(target)
    return target


@contextmanager
def _one_at_a_time(lock: Path, progress: Progress) -> Iterator[None]:
    turn = FileLock(lock)  # released also when the process dies
    try:
        held = turn.acquire(blocking=False)
    except Timeout:
        progress("another import is running; waiting for it")
        held = turn.acquire()
    with held:
        yield


def seal(built: Path, source: Mapping[str, Any], files: Iterable[str]) -> None:
    """Record where ``built`` came from and the sizes of ``files``, and write all of it to disk."""
    record = {**source, "conversion": CONVERSION, "bytes": {name: (built / name).stat().st_size for name in files}}
    (built / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in built.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a server under another user could not read
        with path.open("rb") as file:
            os.fsync(file.fileno())


_GROWTH = 5  # bf16 against the smallest common quantizations


def import_gguf(gguf: Path, progress: Progress = lambda _: None) -> Path:
    """The directory of the base in ``gguf``; quick when it was imported before.

    The work is done by another process: memory and libraries of the conversion go with it. Raises BaseModelError
    saying what is wrong with the file.
    """
    gguf = gguf.expanduser()
    target = gguf_base_dir(gguf)
    return build_once(target, is_complete, lambda staging: _build(gguf, staging, progress), progress)


def _build(gguf: Path, staging: Path, progress: Progress) -> Path:
    free, needed = shutil.disk_usage(staging).free, _GROWTH * gguf.stat().st_size
    if free < needed:
        raise BaseModelError(
            f"importing {gguf.name} may need {needed / 1e9:.1f} GB, {staging.parent} has {free / 1e9:.1f} GB free; "
            "make room or point HOTSWAP_CACHE at another disk"
        )
    progress(f"importing {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB)")
    built = staging / "base"
    command = [sys.executable, "-P", "-m", "bases.gguf", str(gguf.resolve()), str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BaseModelError(lines[-1] if lines else f"the import of {gguf} ended with code {done.returncode}")
    progress(done.stdout.strip())
    seal(built, {"gguf": gguf.name}, [path.name for path in built.iterdir()])
    return built
