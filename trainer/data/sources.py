"""Where the rows of each part of a data set come from: files, folders, patterns, the hub, recipes."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec

from trainer.config.data import HUB, OWN_SPLIT, DataConfig, Format
from trainer.data.dataset_files import TRAIN, files_of_folder, hub_files, parse_hub_id
from trainer.data.rows import RawRow, is_json_object, read_rows
from trainer.errors import DataError
from trainer.files import sha256_of
from trainer.recipes import RECIPES
from trainer.recipes.recipe import Recipe, Split


class Source(Protocol):
    """Rows that can be read again and again."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        ...

    def rows(self) -> Iterator[RawRow]:
        """Its rows, always in the same order. Raises DataError."""
        ...


@dataclass(frozen=True)
class FileSource:
    """The rows of files, one after the other."""

    name: str
    files: Sequence[Path]
    format: Format
    split: str | None

    @cached_property
    def sha256(self) -> str:
        """The file's hash, and that over all hashes where there are several."""
        hashes = [_sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def rows(self) -> Iterator[RawRow]:
        """The rows of each file in turn. Raises DataError, also for a file without any."""
        for path in self.files:
            empty = True
            for row in read_rows(path, self.format, self.split):
                empty = False
                yield row
            if empty:
                raise DataError(f"{path} is empty: it holds no rows")


@dataclass(frozen=True)
class RecipeSource:
    """The rows that a recipe makes of a published set."""

    recipe: Recipe
    folder: Path
    split: Split

    @property
    def name(self) -> str:
        """The recipe and the split."""
        return f"{self.recipe.name} ({self.split})"

    @cached_property
    def sha256(self) -> str:
        """Of the rows, since only the recipe knows which bytes of the folder it reads."""
        digest = hashlib.sha256()
        for row in self.rows():
            digest.update(json.dumps(row.values, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def rows(self) -> Iterator[RawRow]:
        """What the recipe makes of its folder. Raises DataError."""
        for number, values in enumerate(self.recipe.rows(self.folder, self.split), 1):
            yield RawRow(f"{self.name} row {number}", values)


def find_source(config: DataConfig, part: Split) -> Source | None:
    """Where the rows of ``part`` come from, None where they are not a source of their own. Raises DataError."""
    value = {"train": config.path, "validation": config.validation, "test": config.test}[part]
    recipe = find_recipe(config)
    own = value == OWN_SPLIT or (part == "test" and value is None and recipe is not None and "test" in recipe.splits)
    if recipe and (part == "train" or own):
        if part not in recipe.splits:
            raise DataError(f"data.{part}: recipe {recipe.name} has no {part} rows; it has {', '.join(recipe.splits)}")
        return RecipeSource(recipe, Path(config.paths[0]), part)
    if own:
        split = _sibling(config.split, part)
        for path in config.paths:
            _require_splits(path, split, config.format, part)
        return _files(config.paths, split, config.format)
    if value is None or isinstance(value, (int, float)):
        return None
    paths = [value] if isinstance(value, str) else value
    return _files(paths, config.split if part == TRAIN else _sibling(config.split, part), config.format)


def find_train_source(config: DataConfig) -> Source:
    """Where the rows to train on come from. Raises DataError."""
    source = find_source(config, "train")
    assert source is not None  # data.path is always there
    return source


def find_test_source(config: DataConfig) -> Source:
    """Where the rows of ``data.test`` come from. Raises DataError."""
    source = find_source(config, "test")
    if source is None:
        raise DataError("there are no test rows; name them with data.test")
    return source


def find_recipe(config: DataConfig) -> Recipe | None:
    """The recipe that ``config`` names. Raises DataError for an unknown one."""
    if config.recipe is None:
        return None
    if config.recipe not in RECIPES:
        raise DataError(f"data.recipe: unknown recipe {config.recipe!r}; choose from {', '.join(sorted(RECIPES))}")
    return RECIPES[config.recipe]


def _sibling(split: str | None, part: Split) -> str:
    """The split ``part`` of the same configuration as ``split``."""
    folder, slash, _ = (split or "").rpartition("/")
    return folder + slash + part


def _require_splits(path: str, split: str, data_format: Format, part: Split) -> None:
    """Raise DataError for a file that is not one of a split's: its rows are those to train on."""
    if path.startswith(HUB) or Path(path).is_dir():
        return
    for file in _files_of(path, split):
        if not is_json_object(file, data_format, split):
            raise DataError(
                f"data.{part}: split is for folders, sets of the hub and JSON files with a list for each split; "
                f"{file} has no splits: give a file, or of data.validation a share or a count"
            )


def _files(paths: Sequence[str], split: str | None, data_format: Format) -> FileSource:
    files = [file for path in paths for file in _files_of(path, split)]
    name = files[0].name if len(files) == 1 else f"{len(files)} files of {', '.join(paths)}"
    return FileSource(str(files[0]) if len(files) == 1 else name, tuple(files), data_format, split)


def _files_of(path: str, split: str | None) -> list[Path]:
    if path.startswith(HUB):
        hub_id = parse_hub_id(path)
        return hub_files(hub_id, hub_id.split or split)
    local = Path(path)
    if local.is_dir():
        return files_of_folder(local, split, f"the folder {path}")
    if not local.exists() and glob.has_magic(path):
        found = sorted(Path(file) for file in glob.glob(path, recursive=True) if Path(file).is_file())
        if not found:
            raise DataError(f"no file fits the pattern {path}")
        return found
    if not local.exists():
        raise DataError(f"there is no data file {path}")
    return [local]


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def with_recipe(config: DataConfig) -> DataConfig:
    """``config`` with the system prompt of its recipe, unless it has its own."""
    recipe = find_recipe(config)
    if recipe is None or config.system_prompt is not None:
        return config
    return msgspec.structs.replace(config, system_prompt=recipe.system_prompt)
