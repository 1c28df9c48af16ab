"""What a data set's card says of its files: ``configs`` at the head of README.md, as the hub reads them.

Format: https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from trainer.data.split_files import TRAIN, data_files, files_of_split, one_format, split_name
from trainer.errors import DataError, first_line

CARD_FILE = "README.md"
_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_DEFAULT = "default"


@dataclass(frozen=True)
class Configuration:
    """One configuration of a data set: patterns of file names for each split; none where the names shall say it."""

    name: str
    splits: Mapping[str, Sequence[str]]
    folder: str = ""
    is_default: bool = False


def files_of_data_set(names: Sequence[str], card: str, split: str | None, of: str) -> list[str]:
    """The files of ``split`` (``test`` or ``CONFIGURATION/test``) among ``names``, as the text ``card`` says it.

    As files_of_split where the card says nothing. Raises DataError about the data set ``of``.
    """
    known = configurations(card)
    folder, _, wanted = (split or TRAIN).rpartition("/")
    if not known or (folder and folder not in {one.name for one in known}):
        return files_of_split(names, split, of)
    chosen = _choose(known, folder, wanted, of)
    if not chosen.splits:
        inside = [name for name in names if PurePosixPath(name).is_relative_to(chosen.folder or ".")]
        return files_of_split(inside, wanted, of)
    folded = {split_name(name): found for name, found in chosen.splits.items()}
    patterns = chosen.splits.get(wanted) or folded.get(split_name(wanted))
    if not patterns:
        there = ", ".join(sorted(chosen.splits))
        raise DataError(f"{of} has no split {split or TRAIN!r} (found: {there}); name one with data.split")
    try:
        fits = [re.compile(glob_translate(str(PurePosixPath(chosen.folder, pattern)))) for pattern in patterns]
    except ValueError as error:
        raise DataError(f"the {CARD_FILE} of {of} names {' or '.join(patterns)}: {first_line(error)}") from error
    found = [name for name in data_files(names) if any(fit.match(name) for fit in fits)]
    if not found:
        raise DataError(f"{of} has no file {' or '.join(patterns)}, which its {CARD_FILE} names for {wanted}")
    return one_format(found)


def files_of_folder(folder: Path, split: str | None, of: str) -> list[Path]:
    """The files of ``split`` of the data set in ``folder``, with a card or without. Raises DataError about ``of``."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    card = read_card(folder / CARD_FILE) if CARD_FILE in names else ""
    return [folder / name for name in files_of_data_set(names, card, split, of)]


def read_card(path: Path) -> str:
    """The text of the card at ``path``. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def configurations(card: str) -> list[Configuration]:
    """Those that the text ``card`` describes; none where it describes none, or not as the hub reads it."""
    head = _HEAD.match(card)
    try:
        described = yaml.safe_load(head[1]).get("configs") if head else None
        return [_configuration(one) for one in described or ()]
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError):
        return []


def _configuration(one: Mapping[str, Any]) -> Configuration:
    files = one.get("data_files")
    splits: dict[str, Sequence[str]] = {}
    if isinstance(files, list) and files and isinstance(files[0], Mapping):
        splits = {str(entry["split"]): _patterns(entry["path"]) for entry in files}
    elif files:
        splits = {TRAIN: _patterns(files)}
    name = str(one.get("config_name", _DEFAULT))
    return Configuration(name, splits, str(one.get("data_dir") or ""), bool(one.get("default")) or name == _DEFAULT)


def _patterns(files: Any) -> list[str]:
    return [str(file) for file in files] if isinstance(files, list) else [str(files)]


def _choose(known: Sequence[Configuration], name: str, split: str, of: str) -> Configuration:
    if name:
        return next(one for one in known if one.name == name)
    if len(known) == 1:
        return known[0]
    default = next((one for one in known if one.is_default), None)
    if default is None:
        raise DataError(
            f"{of} has several configurations ({', '.join(one.name for one in known)}); name one, "
            f"for example data.split: {known[0].name}/{split}"
        )
    return default
