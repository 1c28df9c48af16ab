"""The cache of imported bases: each is a directory that appears whole, and records where it came from.

A finished import appears by a single rename, so a half-written one is never seen. Two imports at once take turns; the
second finds the first one's result. It does not know who will load the model.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE_FILE = "source.json"

Progress = Callable[[str], None]


def is_complete(directory: Path, needed: Iterable[str] = ("config.json",)) -> bool:
    """Whether ``directory`` holds a finished import with the ``needed`` files, unchanged in size since."""
    try:
        sizes = json.loads((directory / SOURCE_FILE).read_text(encoding="utf-8"))["bytes"]
        return all((directory / name).stat().st_size == sizes[name] for name in {*needed, *sizes})
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
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another import is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, also when the process dies


def seal(built: Path, source: Mapping[str, Any], files: Iterable[str]) -> None:
    """Record where ``built`` came from and the sizes of ``files``, and write all of it to disk."""
    record = {**source, "bytes": {name: (built / name).stat().st_size for name in files}}
    (built / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for path in built.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a server under another user could not read
        with path.open("rb") as file:
            os.fsync(file.fileno())
