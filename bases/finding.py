"""Where base models are found: directories, imported GGUF files, the default base, the hub. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from adapters.quoting import quote
from bases.errors import BaseModelError

DEFAULT_BASE = "smollm2-135m-instruct"
GGUF_BLOCKS = "gguf.blocks"  # beside a base from a GGUF file: its weights as that stored them (bases.gguf_blocks)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "tokenizer*", "vocab*", "merges.txt"]
_HUB_UNREAD = ["*/*", "consolidated*"]
_WINDOWS, _WINDOW = 64, 64 * 1024  # of a GGUF file that are hashed


def cache_dir() -> Path:
    """Where hotswap keeps imported bases: ``$HOTSWAP_CACHE``, or ``~/.cache/hotswap``."""
    return Path(os.environ.get("HOTSWAP_CACHE") or Path.home() / ".cache" / "hotswap").expanduser()


def default_base_dir() -> Path:
    """Where the default base lies once it is imported."""
    return cache_dir() / "bases" / DEFAULT_BASE


def keeps_gguf(directory: Path) -> bool:
    """Whether the base in ``directory`` keeps weights as a GGUF file stored them."""
    return (directory / GGUF_BLOCKS).is_file()


def default_quantization(directory: Path) -> str:
    """How the unquantized base in ``directory`` is served when nobody says: as a GGUF file stored it, or in nf4."""
    return "gguf" if keeps_gguf(directory) else "nf4"


def is_gguf(spec: str) -> bool:
    """Whether ``spec`` names a GGUF file rather than a directory or a hub id."""
    return spec.lower().endswith(".gguf") and not Path(spec).expanduser().is_dir()


def gguf_base_dir(gguf: Path) -> Path:
    """Where the base in the file ``gguf`` lies once it is imported: under a name of its content, wherever it is moved.

    Raises BaseModelError when the file cannot be read.
    """
    try:
        size = gguf.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with gguf.open("rb") as file:
            for i in range(_WINDOWS):
                file.seek(i * max(size - _WINDOW, 0) // (_WINDOWS - 1))
                digest.update(file.read(_WINDOW))
    except OSError as error:
        raise BaseModelError(f"{gguf} cannot be read: {error.strerror}") from error
    return cache_dir() / "bases" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', gguf.stem)}-{digest.hexdigest()[:12]}"


def resolve_base(spec: str) -> Path:
    """The directory of the base meant by ``spec``: a directory, an imported GGUF file, ``DEFAULT_BASE`` or a hub id.

    What is on the hub is downloaded once. Raises BaseModelError saying what to do.
    """
    directory = Path(spec).expanduser()
    if spec and directory.is_dir():
        return directory
    if is_gguf(spec):
        if ((imported := gguf_base_dir(directory)) / "config.json").is_file():
            return imported
        raise BaseModelError(f"{spec} is not imported yet; run: hotswap base import {spec}")
    if spec == DEFAULT_BASE:
        if (default_base_dir() / "config.json").is_file() and keeps_gguf(default_base_dir()):
            return default_base_dir()
        raise BaseModelError(
            f"the default base {DEFAULT_BASE} is not imported yet, or by an earlier version; run: hotswap base import"
        )
    if _HUB_ID.fullmatch(spec):
        return _download(spec)
    raise BaseModelError(
        f"there is no base model {quote(spec)}: give a directory, GGUF file, hub id (org/name) or {DEFAULT_BASE}"
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_UNREAD))
    except GatedRepoError as error:
        raise BaseModelError(f"the base model {hub_id} is gated: accept its terms, then run: hf auth login") from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(f"the hub has no model {hub_id}, or it is private and you are not logged in") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BaseModelError(
            f"the base model {hub_id} is neither a directory nor in the local hub cache, and cannot be downloaded "
            "(is the hub reachable?)"
        ) from error
