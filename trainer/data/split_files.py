"""Which of a data set's files belong to a split, by their names. Touches no file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from trainer.data.rows import SUFFIXES
from trainer.errors import DataError

TRAIN = "train"
_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "devel": "validation", "eval": "validation", "test": "test", "testing": "test",
}  # fmt: skip
_WORDS = re.compile(r"[A-Za-z]+")
_PREFERRED = ("parquet", "jsonl", "json", "csv", "tsv")
_PLAIN_FOLDERS = ("", ".", "data")  # all others are configurations of the data set


def data_files(names: Iterable[str]) -> list[str]:
    """Those of ``names`` (with / between folders) that may hold rows, sorted; hidden ones are left out."""
    return sorted(
        name for name in names if _kind(name) and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    )


def files_of_split(names: Sequence[str], split: str | None, of: str) -> list[str]:
    """The files of ``split`` among ``names``: ``test``, or ``CONFIGURATION/test`` where there are several.

    Without any split in the names all files are its train split. One format is taken where the same rows are there in
    several. Raises DataError about the data set ``of``.
    """
    folder, _, wanted = (split or TRAIN).rpartition("/")
    wanted = split_name(wanted)
    found = data_files(names)
    if not found:
        raise DataError(f"{of} has no data files ({', '.join(SUFFIXES)})")
    if folder:
        found = [name for name in found if str(PurePosixPath(name).parent) == folder]
    by_split: dict[str, list[str]] = {}
    for name in found:
        by_split.setdefault(_split_of(name), []).append(name)
    if set(by_split) == {""}:
        by_split = {TRAIN: by_split[""]}
    chosen = by_split.get(wanted)
    if not chosen:
        known = ", ".join(sorted(filter(None, by_split))) or "none"
        raise DataError(f"{of} has no split {split or TRAIN!r} (found: {known}); name one with data.split")
    folders = sorted({str(PurePosixPath(name).parent) for name in chosen} - set(_PLAIN_FOLDERS))
    if len(folders) > 1 and not folder:
        raise DataError(
            f"{of} has several configurations ({', '.join(folders)}); name one, "
            f"for example data.split: {folders[0]}/{wanted}"
        )
    return one_format(chosen)


def split_name(name: str) -> str:
    """``name`` as splits are called here: ``dev`` is ``validation``."""
    return _NAMES.get(name, name)


def one_format(names: Sequence[str]) -> list[str]:
    """Those of ``names`` in one format, where the same rows may be there in several."""
    kinds = {_kind(name) for name in names}
    best = next(kind for kind in _PREFERRED if kind in kinds)
    return [name for name in names if _kind(name) == best]


def _kind(name: str) -> str:
    path = PurePosixPath(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return SUFFIXES.get(suffix, "")


def _split_of(name: str) -> str:
    """The split in the name of the file or, failing that, of its folder; empty without one."""
    path = PurePosixPath(name.lower())
    for part in (path.name.split(".")[0], path.parent.name):
        for word in _WORDS.findall(part):
            if word in _NAMES:
                return _NAMES[word]
    return ""
