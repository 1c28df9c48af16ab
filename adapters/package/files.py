"""Which files a package consists of, what becomes of others found beside them, and how they reach the disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath

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
PROMPTS_FILE = "config_sentence_transformers.json"
READING_FILE = "sentence_bert_config.json"
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
    PROMPTS_FILE,
    READING_FILE,
)
_MODULE_FOLDER = re.compile(r"\d{1,2}_(Pooling|Dense|Normalize|Dropout)")  # as sentence-transformers names them
MODULE_CONFIG, MODULE_WEIGHTS = _MODULE_FILES = ("config.json", "model.safetensors")

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


def flat_name(path: str) -> str | None:
    """The name in a package, which has no folders, of a file of a module: ``1_Pooling/config.json`` has a dot there.

    None for all other paths.
    """
    folder, _, name = path.partition("/")
    return f"{folder}.{name}" if is_module_folder(folder) and name in _MODULE_FILES else None


def folder_name(name: str) -> str:
    """What sentence-transformers calls a package's file: the opposite of ``flat_name``, itself for all others."""
    path = name.replace(".", "/", 1)
    return path if flat_name(path) is not None else name


def is_module_folder(name: str) -> bool:
    """Whether sentence-transformers calls a folder so that has files of a package."""
    return _MODULE_FOLDER.fullmatch(name) is not None


def is_package_file(name: str) -> bool:
    """Whether a package has a file of that name."""
    return name in PACKAGE_FILES or folder_name(name) != name


def package_files(directory: Path) -> dict[str, Path]:
    """The files in ``directory`` that are a package's, by their names in one, in order. Raises OSError."""
    found = {}
    for child in sorted(directory.iterdir()):
        if is_module_folder(child.name):
            paths = {flat_name(f"{child.name}/{name}"): child / name for name in _MODULE_FILES}
        else:
            paths = {child.name if is_package_file(child.name) else None: child}
        found.update({name: path for name, path in paths.items() if name is not None and path.is_file()})
    return dict(sorted(found.items()))


def module_file(directory: Path, path: str, name: str) -> Path:
    """A file of the module at ``path``: in its folder, or beside the others under the name that a package gives it.

    Raises PackageError for a path that leads elsewhere.
    """
    parts = PurePosixPath(path).parts
    if ".." in parts or PurePosixPath(path).is_absolute():
        raise PackageError(f"{MODULES_FILE}: the path {quote(path)} leads out of its folder")
    flat = directory / f"{path}.{name}"
    return flat if len(parts) == 1 and flat.is_file() else directory.joinpath(*parts, name)


def is_kept(name: str, beside: Collection[str] = ()) -> bool:
    """Whether a file of this name, in the package's own folder and ``beside`` others, is part of the package.

    False for files that do no harm and are never read (README.md, optimizer states, ``._`` files of a Mac, a model's
    whole weights beside those of the adapter). PackageError for weights in a form that is not read, since leaving
    them out would change the adapter.
    """
    if is_package_file(name):
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
