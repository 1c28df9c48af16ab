"""Data sets as LLaMA-Factory (``dataset_info.json``) and Axolotl (``datasets``) describe them, in keys of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config.data import HUB, MessageTags, complete_path, exists
from trainer.config.nested import read_object
from trainer.errors import ConfigError

INFO_FILE = "dataset_info.json"
Kind = Literal["answers", "text", "preference"]  # what a run learns
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_PICTURES = ("images", "videos", "audios")
_OPTIONAL = ("system", "tools", "history")  # columns that are found by these names, wherever they are
_TAG_DEFAULTS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
_KNOWN_TAGS = {
    "role_tag": ("from", "role"), "content_tag": ("value", "content"), "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"), "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call",), "system_tag": ("system",),
}  # fmt: skip


@dataclass(frozen=True)
class Described:
    """``settings`` are our keys; ``name`` is what people wrote. ``plain`` text is learned as in pre-training."""

    name: str
    settings: Mapping[str, Any]
    plain: bool = False


def factory_datasets(
    names: Sequence[str], held_out: Sequence[str], directory: Any, folder: Path, kind: Kind
) -> Described:
    """The data sets ``names`` of LLaMA-Factory, and those to validate on. Raises ConfigError.

    dataset_info.json is looked for in ``directory``; without one in ``data`` and here, and from ``folder`` likewise. A
    name that is a file or a set of the hub needs none.
    """
    said = f"dataset {', '.join([*names, *held_out])}"
    if not all(isinstance(name, str) for name in (*names, *held_out)):
        raise ConfigError("dataset: name data sets, or files")
    info = _read_info(directory, folder)
    train, validation = ([_factory_dataset(name, info, kind) for name in group] for group in (names, held_out))
    return Described(said, _together(said, train, validation))


def axolotl_datasets(train: Any, held_out: Any, folder: Path, kind: Kind) -> Described:
    """The data sets of Axolotl in ``train``, and those to validate on. Raises ConfigError."""
    groups = [_entries(key, value) for key, value in (("datasets", train), ("test_datasets", held_out))]
    described = [[_axolotl_dataset(one, folder, kind) for one in group] for group in groups]
    plain = kind == "text" or any(_type_of(one) in ("completion", "pretrain") for group in groups for one in group)
    return Described("datasets", _together("datasets", *described), plain)


_Set = tuple[list[str], dict[str, Any]]  # its paths, and how they are read


def _together(said: str, train: Sequence[_Set], validation: Sequence[_Set]) -> dict[str, Any]:
    every = [*train, *validation]
    if not every:
        return {}
    ways = [way for _, way in every]
    for way in ways[1:]:
        if way != ways[0]:
            key = min(key for key in ways[0].keys() | way.keys() if ways[0].get(key) != way.get(key))
            raise ConfigError(
                f"{said}: they are not written alike ({key}: {ways[0].get(key)} and {way.get(key)}); a run reads rows "
                "of one shape: train on one of them, or bring them into one shape"
            )
    settings = dict(ways[0])
    paths = [path for found, _ in train for path in found]
    held_out = [path for found, _ in validation for path in found]
    if paths:
        settings["data.path"] = paths[0] if len(paths) == 1 else paths
    if len(held_out) > 1:
        raise ConfigError(f"{said}: rows to validate on come from one path; there are {len(held_out)}")
    if held_out:
        settings["data.validation"] = held_out[0]
    return settings


@dataclass(frozen=True)
class _Info:
    """What dataset_info.json says; ``folder`` is its own, None where there is no such file."""

    folder: Path | None
    sets: Mapping[str, Any]


def _read_info(directory: Any, folder: Path) -> _Info:
    inside = [Path(str(directory))] if directory else [Path("data"), Path()]
    places = [root / place for root in (Path(), folder) for place in inside]
    file = next((place / INFO_FILE for place in places if (place / INFO_FILE).is_file()), None)
    if file is None:
        if directory:
            raise ConfigError(f"dataset_dir: there is no {INFO_FILE} in {directory}")
        return _Info(None, {})
    return _Info(file.parent, read_object("dataset", file, "object with a description for each name"))


def _factory_dataset(name: str, info: _Info, kind: Kind) -> _Set:
    described = info.sets.get(name)
    if described is None:
        if exists(name) or complete_path(name).startswith(HUB):
            return [name], {}
        raise ConfigError(f"dataset: {_unknown(name, info)}")
    where = f"dataset: {name} in {INFO_FILE}"
    if not isinstance(described, Mapping):
        raise ConfigError(f"{where} must be described by an object")
    columns, tags = (described.get(key) or {} for key in ("columns", "tags"))
    if not isinstance(columns, Mapping) or not isinstance(tags, Mapping):
        raise ConfigError(f"{where}: columns and tags must be objects")
    if pictures := [key for key in _PICTURES if columns.get(key)]:
        raise ConfigError(f"{where} has {' and '.join(pictures)}; bases here read text alone")
    if bool(described.get("ranking")) and kind != "preference":
        raise ConfigError(f"{where} holds pairs of answers (ranking); give stage: dpo, or rm for a reward model")
    way = dict(_factory_way(described, columns, tags, kind, where))
    if split := "/".join(str(described[key]) for key in ("subset", "split") if described.get(key)):
        way["data.split"] = split if described.get("split") else f"{split}/train"
    return [_factory_path(described, info.folder or Path(), where)], way


def _unknown(name: str, info: _Info) -> str:
    if info.folder is None:
        return (
            f"{name} is no file, and there is no {INFO_FILE} here or in data that describes it; name its folder with "
            "dataset_dir, or the file itself with data.path"
        )
    near = difflib.get_close_matches(name, info.sets, 1)
    hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(list(info.sets)[:12]) or 'none'}"
    return f"{info.folder / INFO_FILE} knows no {name}; {hint}"


def _factory_path(described: Mapping[str, Any], folder: Path, where: str) -> str:
    if hub := described.get("hf_hub_url"):
        path = f"{HUB}{hub}"
        return f"{path}/{described['folder']}" if described.get("folder") else path
    if file := described.get("file_name"):
        return str(folder / str(file))
    if described.get("script_url"):
        raise ConfigError(f"{where} is made by a script, which is not run; give its rows as a file")
    raise ConfigError(f"{where} names no file_name and no hf_hub_url; download it and give its file with file_name")


def _factory_way(
    described: Mapping[str, Any], columns: Mapping[str, Any], tags: Mapping[str, Any], kind: Kind, where: str
) -> Iterator[tuple[str, Any]]:
    """How the rows are read: our keys and their values."""
    formatting = described.get("formatting") or "alpaca"
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise ConfigError(f"{where}: formatting {formatting!r} is not known; it is alpaca or sharegpt")
    if kind == "text":
        column = columns.get("prompt") or "text"
        if column != "text":
            yield "data.columns.text", column
        return
    yield from (
        (f"data.columns.{name}", columns[name]) for name in _OPTIONAL if columns.get(name) not in (None, "", name)
    )
    if formatting == "alpaca":
        yield from _alpaca_way(columns, kind)
    else:
        default = "messages" if formatting == "openai" else "conversations"
        tags = {"role_tag": "role", "content_tag": "content", **tags} if formatting == "openai" else tags
        yield from _messages_way(columns.get("messages") or default, kind)
        yield from _tags(tags)
    answers = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "label"}
    for theirs, ours in answers.items() if kind == "preference" else ():
        if columns.get(theirs) not in (None, "", ours):
            yield f"preference.columns.{ours}", columns[theirs]


def _alpaca_way(columns: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, Any]]:
    known = columns or _ALPACA  # where columns are named, those that are not are none
    if kind == "answers":
        yield "data.shape", "alpaca" if known.get("query") else "prompt_response"
    prompt, query, response = (known.get(key) or _ALPACA[key] for key in _ALPACA)
    if (prompt, kind) != (_ALPACA["prompt"], "preference") and (columns or kind == "preference"):
        yield "data.columns.prompt", prompt
    if query != _ALPACA["query"]:
        yield "data.columns.input", query
    if kind == "answers" and columns:
        yield "data.columns.response", response
    if kind == "preference" and columns.get("kto_tag"):
        yield "preference.columns.completion", response


def _messages_way(column: str, kind: Kind) -> Iterator[tuple[str, Any]]:
    usual = column in ("messages", "conversations")
    if kind == "answers":
        yield "data.shape", "messages" if column == "messages" else "sharegpt"
    if not usual:
        yield "data.columns.messages", column


def _tags(tags: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in MessageTags.__struct_fields__:
        value = tags.get(name) or _TAG_DEFAULTS[name]
        if value not in _KNOWN_TAGS[name]:
            yield f"data.tags.{name}", str(value)


_BUILDERS = ("json", "csv", "parquet", "text")  # a path of Axolotl that says how data_files are written


def _entries(key: str, value: Any) -> list[Mapping[str, Any]]:
    items = [] if value is None else value if isinstance(value, list) else [value]
    entries = [{"path": item} if isinstance(item, str) else item for item in items]
    if not all(isinstance(item, Mapping) and item.get("path") for item in entries):
        raise ConfigError(f"{key}: each of them must have a path")
    return entries


def _type_of(entry: Mapping[str, Any]) -> str:
    kind = entry.get("type")
    return kind.partition(".")[0].partition(":")[0] if isinstance(kind, str) else ""


def _axolotl_dataset(entry: Mapping[str, Any], folder: Path, kind: Kind) -> _Set:
    way = dict(_axolotl_way(entry, kind))
    if split := entry.get("split") or entry.get("train_on_split"):
        if "[" in str(split):
            raise ConfigError(f"datasets: the split {split} takes a part of the rows; name the split, and set max_rows")
        way["data.split"] = str(split)
    if entry.get("name"):
        way["data.split"] = f"{entry['name']}/{way.get('data.split', 'train')}"
    files = entry.get("data_files") or []
    files = files if isinstance(files, list) else [files]
    path = str(entry["path"])
    if files:
        root = Path() if path in _BUILDERS else Path(path)
        return [_near(str(root / str(file)), folder) for file in files], way
    revision = f"@{entry['revision']}" if entry.get("revision") else ""
    return [_near(path, folder) + revision], way


def _near(path: str, folder: Path) -> str:
    """``path`` as it is, or in the folder of the configuration where it is only there."""
    beside = str(folder / path)
    return beside if not exists(path) and exists(beside) else path


def _axolotl_way(entry: Mapping[str, Any], kind: Kind) -> Iterator[tuple[str, Any]]:
    fields = entry.get("type") if isinstance(entry.get("type"), Mapping) else {}
    assert isinstance(fields, Mapping)
    named = _type_of(entry)
    if kind == "text" or named in ("completion", "pretrain"):
        column = entry.get("field") or entry.get("text_column") or "text"
        if column != "text":
            yield "data.columns.text", column
    elif fields:
        yield from _axolotl_fields(fields)
    elif named in ("chat_template", "sharegpt") and kind == "answers":
        default = "conversations" if named == "sharegpt" else "messages"
        yield from _messages_way(str(entry.get("field_messages") or entry.get("field") or default), kind)
        yield from _axolotl_tags(entry)
    elif named.startswith("alpaca") and kind == "answers":
        yield "data.shape", "alpaca"
    elif kind == "preference":
        for theirs, ours in (("field_chosen", "chosen"), ("field_rejected", "rejected")):
            if entry.get(theirs) not in (None, ours):
                yield f"preference.columns.{ours}", entry[theirs]
        if entry.get("field_messages") not in (None, "messages", "conversations"):
            yield "data.columns.messages", entry["field_messages"]


def _axolotl_fields(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The columns of a prompt that is described in the file itself; its text is the template's here."""
    if fields.get("field") and not fields.get("field_instruction"):
        yield "data.columns.text", fields["field"]
        return
    yield "data.shape", "alpaca" if fields.get("field_input") else "prompt_response"
    yield "data.columns.prompt", fields.get("field_instruction") or "instruction"
    yield "data.columns.response", fields.get("field_output") or "output"
    for theirs, ours in (("field_input", "input"), ("field_system", "system")):
        if fields.get(theirs) not in (None, "", ours):
            yield f"data.columns.{ours}", fields[theirs]
    if fields.get("system_prompt"):
        yield "data.system_prompt", fields["system_prompt"]


def _axolotl_tags(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    mapping = entry.get("message_property_mappings") or {}
    roles = entry.get("roles") or {}
    if not isinstance(mapping, Mapping) or not isinstance(roles, Mapping):
        raise ConfigError("datasets: message_property_mappings and roles must be objects")
    tags = {
        "role_tag": mapping.get("role") or entry.get("message_field_role") or "role",
        "content_tag": mapping.get("content") or entry.get("message_field_content") or "content",
    }
    for role, tag in (("user", "user_tag"), ("assistant", "assistant_tag"), ("system", "system_tag")):
        names = roles.get(role) or []
        others = [name for name in (names if isinstance(names, list) else [names]) if name not in _KNOWN_TAGS[tag]]
        if len(others) > 1:
            raise ConfigError(f"datasets: the role {role} has several names ({', '.join(others)}); one is understood")
        if others:
            tags[tag] = others[0]
    yield from _tags(tags)
