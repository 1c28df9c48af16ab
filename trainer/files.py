"""Files of runs: their names, and how files and directories are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from adapters.package.files import move_directory, sync
from trainer.errors import CheckpointError, TrainerError

CONFIG_FILE = "config.yaml"
SERVED_TEMPLATE = "chat_template.jinja"  # for --chat-template, where training had another than the base's
PACKAGE_DIR, BASE_DIR, REWARD_DIR = "adapter", "base", "reward_model"  # what a run ends in: one of them


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TORCH_WRITES = ("inline_container", "PytorchStreamWriter")  # in what torch.save says of a write that failed
_DISK_FULL = "the disk is full: No space left on device"


def write_failure(error: BaseException) -> str:
    """Why something could not be written, in words; empty where ``error`` is about something else.

    torch and safetensors have errors of their own for it, and torch's do not say why.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        return _DISK_FULL if error.errno == errno.ENOSPC else error.strerror or text
    if isinstance(error, SafetensorError) and "I/O error" in text:
        return _DISK_FULL if f"os error {errno.ENOSPC})" in text else text.rpartition("I/O error: ")[2]
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_WRITES):
        return "the disk is full, or does not take so large a file"
    return ""


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in the place of what was there. Raises OSError; what was there stands then."""
    scratch = path.with_name(f".{path.name}")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def write_json(path: Path, record: Any) -> None:
    """Write ``record``, a document for people to read too, as ``write_whole`` does. Raises OSError."""
    write_whole(path, json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def check_writable(path: Path, error: type[TrainerError]) -> None:
    """Raise ``error``, before any work is done, where a report cannot be written to ``path``."""
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise error(f"{path} cannot be written there; name a file in a folder that exists")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty directory that takes the place of ``path`` when the block ends, and is removed when it fails.

    Raises CheckpointError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {write_failure(error)}") from error
    try:
        yield scratch
        scratch.chmod(0o755)
        for file in scratch.iterdir():
            file.chmod(0o644)  # safetensors lets only the owner read what it writes; a server may be another user
            sync(file)
        sync(scratch)
        move_directory(scratch, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not (reason := write_failure(error)):
            raise
        raise CheckpointError(f"{path} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file ``path``, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
