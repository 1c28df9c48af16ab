"""The keys under ``data``: where rows come from, how they become text, and what is kept of them.

With the paths of a configuration, which a run keeps so that it can be repeated from any folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from trainer.errors import ConfigError


def absolute(path: str) -> str:
    """``path`` from the root, ``~`` and ``..`` resolved by their names; links are not followed. Raises ConfigError."""
    return os.path.abspath(_expanded(path))


def exists(path: str) -> bool:
    """Whether there is a file or folder ``path``. Raises ConfigError where nobody can tell."""
    try:
        _expanded(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path[:200]} cannot be looked at: {getattr(error, 'strerror', error)}") from error
    return True


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path} begins with the home of a user whom this machine does not know") from error


Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "conll", "txt", "txt_paragraphs", "txt_file"]
ShapeName = Literal["auto", "messages", "sharegpt", "prompt_response", "prompt_completion", "alpaca", "text"]
Learn = Literal["all_answers", "last_answer", "everything"]
TooLong = Literal["drop", "cut_start", "cut_end", "split"]
Tokens = Annotated[int, Meta(ge=1)]
ROLES = ("system", "developer", "user", "assistant", "tool")  # those that chat templates know
CALL_ROLE = "function_call"  # an assistant's message that is a call
HUB = "hub:"
OWN_SPLIT = "split"  # as value of validation and test: the split of that name which the data set itself has
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?(#[\w./-]+)?")
_DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|conll|bio|iob2?|txt)(\.gz)?$", re.IGNORECASE)


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which columns of the data hold what. What is not said is looked for under the usual names of the shape."""

    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    system: str | None = None
    history: str | None = None
    messages: str | None = None
    tools: str | None = None
    text: str | None = None


class MessageTags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How messages are written, where it is neither OpenAI's way nor ShareGPT's: their keys, and their roles' names."""

    role_tag: str | None = None
    content_tag: str | None = None
    user_tag: str | None = None
    assistant_tag: str | None = None
    observation_tag: str | None = None
    function_tag: str | None = None
    system_tag: str | None = None


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The training data.

    ``path`` is a file, folder, pattern (``rows/*.jsonl``) or ``hub:owner/name[@revision][#split]``, or a list of them;
    with ``recipe`` it is the folder of that published set. ``split`` picks the files, or the list in a JSON object, of
    that split (train where nothing is said).
    ``validation`` is a share of the rows to hold back (0.1), a count of rows (50), a path, or ``split`` for the
    validation split that the data set has; 0 for none. ``test`` is a path or ``split``, for evaluation only.
    ``max_rows`` draws so many of the rows by the seed. ``duplicates`` are counted, and kept or dropped. A document of a
    .txt file is a line (``format`` txt), what stands between blank lines (txt_paragraphs), or all of it (txt_file).
    ``roles`` says which role a name stands for that the data gives one, or names a template's own by itself.
    ``template`` is ``chat`` (the base's chat template), ``none`` (prompt and response joined as they are), a named
    template, a .jinja file, or Jinja text. ``tools`` says how functions and calls are written: as ``text``, by the
    ``template``, or (auto) by that where it knows how. ``learn`` says which messages are learned.
    ``too_long`` says what becomes of rows above ``max_length`` tokens: ``drop`` them, cut the start or the end off, or
    ``split`` them (shape text only). ``max_prompt_length`` and ``max_response_length`` cut these parts first.
    """

    path: str | list[str]
    recipe: str | None = None
    split: str | None = None
    validation: Annotated[float, Meta(ge=0)] | str = 0.1
    test: str | None = None
    max_rows: Tokens | None = None
    duplicates: Literal["keep", "drop"] = "keep"
    format: Format = "auto"
    shape: ShapeName = "auto"
    columns: Columns = msgspec.field(default_factory=Columns)
    roles: dict[str, str] = msgspec.field(default_factory=dict)
    tags: MessageTags = msgspec.field(default_factory=MessageTags)
    template: str = "chat"
    tools: Literal["auto", "text", "template"] = "auto"
    learn: Learn = "all_answers"
    system_prompt: str | None = None
    prompt_prefix: str = ""
    max_length: Annotated[int, Meta(ge=8)] = 1024
    max_prompt_length: Annotated[int, Meta(ge=8)] | None = None
    max_response_length: Tokens | None = None
    too_long: TooLong = "drop"

    @property
    def paths(self) -> list[str]:
        """``path`` as a list."""
        return [self.path] if isinstance(self.path, str) else self.path


def complete_data(data: DataConfig) -> DataConfig:
    """``data`` standing for itself: paths absolute, hub ids marked as such, a template file by its text."""
    paths = [complete_path(path, hub=data.recipe is None) for path in data.paths]
    changes: dict[str, object] = {"path": paths[0] if isinstance(data.path, str) else paths}
    for key in ("validation", "test"):
        value = getattr(data, key)
        if isinstance(value, str) and value != OWN_SPLIT:
            changes[key] = complete_path(value)
    if is_template_file(data.template):
        changes["template"] = _template_text(Path(data.template).expanduser())
    return msgspec.structs.replace(data, **changes)


def complete_path(path: str, *, hub: bool = True) -> str:
    """``path`` made absolute; an owner/name that is no local path becomes a hub id."""
    if path.startswith(HUB):
        return path
    if hub and not exists(path) and _HUB_ID.fullmatch(path) and not _DATA_FILE.search(path):
        return HUB + path
    return absolute(path)


def is_template_file(template: str) -> bool:
    """Whether ``template`` names a file, rather than a template or being one itself."""
    return "{" not in template and template.endswith((".jinja", ".jinja2", ".j2"))


def _template_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template: {path} cannot be read as UTF-8 text") from error
