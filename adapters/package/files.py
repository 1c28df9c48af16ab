"""Which files a package consists of, what becomes of others found beside them, and how they reach the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adapters.errors import PackageError
from adapters.kinds.config import CONFIG_FILE
from adapters.quoting import quote

WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "hotswap.json"
GOLDEN_FILE = "golden.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
PACKAGE_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    MANIFEST_FILE,
    GOLDEN_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    GENERATION_FILE,
    TEMPLATE_FILE,
)

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_TRAINING_STATE = ("training_args.bin", "optimizer.", "scheduler.", "scaler.", "rng_state")


def is_kept(name: str) -> bool:
    """Whether a file of this name, in the package's own folder, is part of the package.

    False for files that do no harm and are never read (README.md, optimizer states).
    PackageError for weights in a form that is not read, since leaving them out would change the adapter.
    """
    if name in PACKAGE_FILES:
        return True
    lower = name.lower()
    if lower.startswith(_TRAINING_STATE):
        return False
    if lower.endswith(_PICKLES):
        raise PackageError(
            f"{quote(name)} is a pickle file, which can run code when it is read; convert the weights to "
            f"{WEIGHTS_FILE} (peft's save_pretrained writes it by default) and leave this file out"
        )
    if lower.endswith(".safetensors"):
        raise PackageError(f"{quote(name)} is not part of an adapter package; its weights are read from {WEIGHTS_FILE}")
    return False


def sync(path: Path) -> None:
    """Let a file's content, or a directory's entries, reach the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_directory(scratch: Path, path: Path) -> None:
    """Put ``scratch`` in the place of ``path``; what was there goes only once the new one stands. Raises OSError."""
    old = scratch.with_name(scratch.name + "-old")
    if path.exists():
        path.rename(old)
    scratch.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
