"""Ways in which a stored package may be other than it was, and a disk that takes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Spoil = Callable[[Path], object]


def flip_a_bit(package: Path) -> None:
    """The lowest bit of some weight: still a sound package."""
    data = bytearray((package / WEIGHTS).read_bytes())
    data[-4] ^= 1
    (package / WEIGHTS).write_bytes(data)


def change_a_scale(package: Path) -> None:
    """A sound package that computes something else."""
    config = json.loads((package / CONFIG).read_text())
    (package / CONFIG).write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] + 1}))


def truncate(package: Path) -> None:
    os.truncate(package / WEIGHTS, 1000)


def replace_by_a_file(package: Path) -> None:
    shutil.rmtree(package)
    package.write_text("no package")


def replace_by_a_pipe(package: Path) -> None:
    (package / WEIGHTS).unlink()
    os.mkfifo(package / WEIGHTS)


SPOILS: dict[str, tuple[Spoil, str]] = {
    "a bit": (flip_a_bit, "not those that were uploaded"),
    "a scale": (change_a_scale, "not those that were uploaded"),
    "shorter": (truncate, "truncated"),
    "no weights": (lambda package: (package / WEIGHTS).unlink(), f"no {WEIGHTS}"),
    "no folder": (shutil.rmtree, "not a directory"),
    "a file": (replace_by_a_file, "not a directory"),
    "a pipe": (replace_by_a_pipe, f"no {WEIGHTS}"),
}


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below ``folder`` can be made, changed or deleted within the block."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    for command in (["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,bind,ro", str(folder)]):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """``folder`` is a disk of that size within the block."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
