"""Which files a package consists of, what becomes of others found beside them, and how they reach the disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from adapters.errors import PackageError
from adapters.kinds.config import CONFIG_FILE
from adapters.quoting import quote

WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "hotswap.json"
GOLDEN_FILE = "golden.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
MODEL_CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
PACKAGE_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    MANIFEST_FILE,
    GOLDEN_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    ADDED_TOKENS_FILE,
    SPECIAL_TOKENS_FILE,
    GENERATION_FILE,
    TEMPLATE_FILE,
    MODEL_CONFIG_FILE,
    MODULES_FILE,
)

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LEFT_ASIDE = re.compile(  # by peft, beside our weights: the same in another form, whole models
    r"(adapter_model|adapter_\d+)\.(bin|pt)|(pytorch_|ft[_-]|hf_)?model([_-].*)?\.(bin|pt|safetensors)"
    r"|consolidated([._-].*)?\.(pth|safetensors)"
)
_TRAINING_STATE = re.compile(  # what Trainer, accelerate, DeepSpeed, FSDP and torchtune save to go on from
    r"(training_args|dl_state_dict)\.bin|(recipe|trainer|training|dataloader|dataset)_state\.pt"
    r"|(optimizer|scheduler|scaler|grad_scaler|sampler|lr_scheduler|optim|random_states|rng_state|custom_checkpoint)([._-].*)?"
    r"|.*(_optim_states|_model_states)\.pt"
)
_FOREIGN_FOLDERS = ("__MACOSX",)


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is a system's or a tool's own, never an adapter's: hidden, or a Mac's."""
    return name.startswith(".") or name in _FOREIGN_FOLDERS


def is_kept(name: str, beside: Collection[str] = ()) -> bool:
    """Whether a file of this name, in the package's own folder and ``beside`` others, is part of the package.

    False for files that do no harm and are never read (README.md, optimizer states, ``._`` files of a Mac, a model's
    whole weights beside those of the adapter). PackageError for weights in a form that is not read, since leaving
    them out would change the adapter.
    """
    if name in PACKAGE_FILES:
        return True
    lower = name.lower()
    if is_junk(name) or _TRAINING_STATE.fullmatch(lower):
        return False
    if WEIGHTS_FILE in beside and _LEFT_ASIDE.fullmatch(lower):
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
