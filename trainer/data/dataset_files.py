"""Which files of a data set hold a split: by its card, else by their names; of a folder, or of one on the hub.

A card is the head of README.md (``configs``, https://huggingface.co/docs/hub/datasets-manual-configuration).
``hub:owner/name[@revision][#split]`` comes as files in the local cache; HF_ENDPOINT, HF_TOKEN, HF_HOME and
HF_HUB_OFFLINE are huggingface_hub's own. Reads no rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from trainer.config.data import HUB
from trainer.data.rows import SUFFIXES
from trainer.errors import DataError, first_line

TRAIN = "train"
_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "devel": "validation", "eval": "validation", "test": "test", "testing": "test",
}  # fmt: skip
_WORDS = re.compile(r"[A-Za-z]+")
_PREFERRED = ("parquet", "jsonl", "json", "csv", "tsv", "conll", "txt")
_PLAIN_FOLDERS = ("", ".", "data")  # all others are configurations of the data set


def data_files(names: Iterable[str]) -> list[str]:
    """Those of ``names`` (with / between folders) that may hold rows, sorted; hidden ones are left out.

    Text is read where there is nothing else: beside rows it is a licence or a note.
    """
    found = sorted(
        name
        for name in names
        if _format_name(name) and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    )
    return [name for name in found if _format_name(name) != "txt"] or found


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
    kinds = {_format_name(name) for name in names}
    best = next(kind for kind in _PREFERRED if kind in kinds)
    return [name for name in names if _format_name(name) == best]


def _format_name(name: str) -> str:
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


CARD_FILE = "README.md"
_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_DEFAULT = "default"


@dataclass(frozen=True)
class DatasetConfiguration:
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
    chosen = _choose_configuration(known, folder, wanted, of)
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


def configurations(card: str) -> list[DatasetConfiguration]:
    """Those that the text ``card`` describes; none where it describes none, or not as the hub reads it."""
    head = _HEAD.match(card)
    try:
        described = yaml.safe_load(head[1]).get("configs") if head else None
        return [_configuration(one) for one in described or ()]
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError):
        return []


def _configuration(one: Mapping[str, Any]) -> DatasetConfiguration:
    files = one.get("data_files")
    splits: dict[str, Sequence[str]] = {}
    if isinstance(files, list) and files and isinstance(files[0], Mapping):
        splits = {str(entry["split"]): _patterns(entry["path"]) for entry in files}
    elif files:
        splits = {TRAIN: _patterns(files)}
    name = str(one.get("config_name", _DEFAULT))
    return DatasetConfiguration(
        name, splits, str(one.get("data_dir") or ""), bool(one.get("default")) or name == _DEFAULT
    )


def _patterns(files: Any) -> list[str]:
    return [str(file) for file in files] if isinstance(files, list) else [str(files)]


def _choose_configuration(
    known: Sequence[DatasetConfiguration], name: str, split: str, of: str
) -> DatasetConfiguration:
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


_HUB_ID = re.compile(r"(?P<name>[^@#]+/[^@#]+?)(@(?P<revision>[^#]+))?(#(?P<split>.+))?")


@dataclass(frozen=True)
class HubId:
    """A data set on the hub. None stands for its main branch and for what the configuration says."""

    name: str
    revision: str | None = None
    split: str | None = None


def parse_hub_id(path: str) -> HubId:
    """The parts of ``hub:owner/name[@revision][#split]``. Raises DataError."""
    found = _HUB_ID.fullmatch(path.removeprefix(HUB))
    if not found:
        raise DataError(f"{path} is no data set of the hub; write hub:owner/name, hub:owner/name@revision#split")
    return HubId(found["name"], found["revision"], found["split"])


def hub_files(hub_id: HubId, split: str | None) -> list[Path]:
    """The files of ``split`` of ``hub_id``, downloaded where the cache lacks them. Raises DataError in one line."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, whichever it uses

    name, revision = hub_id.name, hub_id.revision
    of = f"the data set {name} on the hub"
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
            return files_of_folder(folder, split, f"the cached copy of {name}")

        def download(file: str) -> Path:
            return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))

        listed = HfApi().list_repo_files(name, revision=revision, repo_type="dataset")
        card = read_card(download(CARD_FILE)) if CARD_FILE in listed else ""
        return [download(file) for file in files_of_data_set(listed, card, split, of)]
    except (OSError, HTTPError, ValueError) as error:
        raise DataError(_hub_error_text(hub_id, error)) from error


def _hub_error_text(hub_id: HubId, error: Exception) -> str:
    from huggingface_hub import constants, errors

    name = hub_id.name
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the data set {name} is gated: ask for access at {constants.ENDPOINT}/datasets/{name}, then set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is neither a local path {name} nor a data set of that name at {constants.ENDPOINT}; "
            "if it is private set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the data set {name} has no revision {hub_id.revision}"
    if isinstance(error, errors.HFValidationError):
        return f"{HUB}{name} is no name that the hub could have; write hub:owner/name"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return f"the data set {name} is not in the local cache and HF_HUB_OFFLINE is set; download it once online"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no"
        return f"the hub at {constants.ENDPOINT} answered {status} for the data set {name}; try again later"
    return f"the data set {name} cannot be had from {constants.ENDPOINT}: {first_line(error)}"
