"""The keys under ``data``: where rows come from, how they become text, and what is kept of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from trainer.config.paths import absolute, exists
from trainer.errors import ConfigError

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet"]
ShapeName = Literal["auto", "messages", "sharegpt", "prompt_response", "prompt_completion", "alpaca", "text"]
Learn = Literal["all_answers", "last_answer", "everything"]
TooLong = Literal["drop", "cut_start", "cut_end", "split"]
Tokens = Annotated[int, Meta(ge=1)]
HUB = "hub:"
OWN_SPLIT = "split"  # as value of validation and test: the split of that name which the data set itself has
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?(#[\w./-]+)?")
_DATA_FILE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|txt)(\.gz)?$", re.IGNORECASE)


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


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The training data.

    ``path`` is a file, folder, pattern (``rows/*.jsonl``) or ``hub:owner/name[@revision][#split]``, or a list of them;
    with ``recipe`` it is the folder of that published set. ``split`` picks the files, or the list in a JSON object, of
    that split (train where nothing is said).
    ``validation`` is a share of the rows to hold back (0.1), a count of rows (50), a path, or ``split`` for the
    validation split that the data set has; 0 for none. ``test`` is a path or ``split``, for evaluation only.
    ``max_rows`` draws so many of the rows by the seed. ``duplicates`` are counted, and kept or dropped.
    ``template`` is ``chat`` (the base's chat template), ``none`` (prompt and response joined as they are), a named
    template, a .jinja file, or Jinja text. ``tools`` says how functions and calls are written: as ``text``, or by the
    ``template``. ``learn`` says which messages are learned.
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
    template: str = "chat"
    tools: Literal["text", "template"] = "text"
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


def check_data(data: DataConfig) -> None:
    """Raise ConfigError, naming the key, for values that do not go together."""
    if not data.paths or not all(path.strip() for path in data.paths):
        raise ConfigError("data.path: give the file with the training data")
    validation = data.validation
    if isinstance(validation, float) and validation > 1 and not validation.is_integer():
        raise ConfigError(f"data.validation: {validation} is neither a share below 1 nor a whole number of rows")
    if data.template == "none":
        for column in ("messages", "history", "tools"):
            if getattr(data.columns, column):
                raise ConfigError(f"data.columns.{column}: conversations need data.template: chat")
        if data.columns.system or data.system_prompt:
            raise ConfigError("data.template: none has no place for a system prompt; put it into the prompt column")
        if data.shape in ("messages", "sharegpt"):
            raise ConfigError(f"data.shape: {data.shape} are conversations, which need data.template: chat")
    if data.columns.system and data.system_prompt:
        raise ConfigError("data.system_prompt: give it or data.columns.system, not both")
    if data.too_long == "split" and (data.shape not in ("auto", "text")):
        raise ConfigError(f"data.too_long: split is for the shape text; {data.shape} rows can be dropped or cut")
    if data.recipe and len(data.paths) > 1:
        raise ConfigError("data.path: a recipe reads one folder")


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
