"""Imports a GGUF file into the cache of bases, once, in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from adapters.base import gguf_base_dir
from adapters.errors import BaseModelError
from server.base_cache import Progress, build_once, is_complete, seal

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
    command = [sys.executable, "-P", "-m", "server.model.gguf", str(gguf.resolve()), str(built)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BaseModelError(lines[-1] if lines else f"the import of {gguf} ended with code {done.returncode}")
    seal(built, {"gguf": gguf.name}, [path.name for path in built.iterdir()])
    return built
