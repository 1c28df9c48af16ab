"""The command line of ``hotswap serve``: flags over environment (HOTSWAP_*) over a YAML file over defaults.

Flags are argparse's, made of the fields of the settings, because pydantic-settings' own parser splits every list at its
commas, has no groups and answers a mistake in several lines. What a setting is, ``server.settings`` says.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import yaml
from platformdirs import user_data_path
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from server.config import EngineConfig, Flag
from server.errors import ServerError
from server.setting_kinds import WrongKindError, read_text
from server.settings import ServerConfig, open_to_others

ENV_PREFIX = "HOTSWAP_"
_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class SettingsFile(PydanticBaseSettingsSource):
    """The YAML file that the sources before this one name as ``config``; no file, no settings."""

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # all are given at once, by the call

    @override
    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        return _settings_of(path) if path else {}


class Settings(BaseSettings, ServerConfig):
    """The settings of a server, from wherever they stand."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, enable_decoding=False)

    config: Annotated[str, Flag("", "YAML file of settings", "FILE")] = ""

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SettingsFile(settings_cls)


class _SettingsParser(argparse.ArgumentParser):
    """Ends with one line and exit code 2."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def option(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def parser() -> argparse.ArgumentParser:
    """The parser of ``hotswap serve``; every absent flag is None."""
    out = _SettingsParser(
        prog="hotswap serve",
        description="Serve one base model and its adapters over the OpenAI API.",
        epilog="Every flag can also be given as HOTSWAP_<NAME> in the environment (lists separated by commas) or as "
        "<name> in the YAML file; flags win over the environment, which wins over the file.",
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {"": out}
    fields = Settings.model_fields
    for name in sorted(fields, key=lambda name: name not in EngineConfig.__struct_fields__):
        field = fields[name]
        flag = next(item for item in field.metadata if isinstance(item, Flag))
        if flag.group not in groups:
            groups[flag.group] = out.add_argument_group(flag.group)
        groups[flag.group].add_argument(option(name), help=flag.text(field.default), **_argparse_options(field, flag))
    return out


def _argparse_options(field: FieldInfo, flag: Flag) -> dict[str, Any]:
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    action = "append" if get_origin(field.annotation) is tuple else "store"
    return {"action": action, "metavar": flag.metavar}


def load(argv: Sequence[str]) -> ServerConfig:
    """The configuration of a command line. Raises ValueError with one clear line; exits 2 on bad flags."""
    namespace, unknown = parser().parse_known_args(list(argv))
    if unknown:
        known = [option(name) for name in Settings.model_fields]
        raise ValueError(f"unknown argument {unknown[0]!r}{_nearest(unknown[0], known)}")
    flags = {name: value for name, value in vars(namespace).items() if value is not None}
    try:
        config = Settings(**flags)
    except ValidationError as error:  # which holds the values given, keys among them
        raise ValueError(_message(error.errors()[0], flags)) from None
    if not (config.is_loopback or config.api_keys or config.admin_keys or _catalog_has_keys(config)):
        raise ValueError(open_to_others(config.host))
    return config


def _catalog_has_keys(config: ServerConfig) -> bool:
    """Whether there may be keys in the catalog: where it cannot be asked, the start will say why."""
    from server.catalog.database.database import Database, sqlite_url
    from server.catalog.database.keys import has_keys

    try:
        folder = Path(config.data_dir or user_data_path("hotswap")).expanduser()
        if not config.catalog and not (folder / "catalog.db").exists():
            return False
        database = Database(config.catalog or sqlite_url(folder))
        with closing(database):
            return has_keys(database)
    except (OSError, RuntimeError, ServerError):
        return True


def _settings_of(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{path} is not valid YAML{where}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings as `name: value` lines")
    for key in content:
        if str(key).replace("-", "_") not in ServerConfig.model_fields:
            near = _nearest(str(key), list(ServerConfig.model_fields))
            raise ValueError(f"{path}: unknown setting {str(key)!r}{near}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _nearest(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong.partition("=")[0], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _message(error: Mapping[str, Any], flags: dict[str, Any]) -> str:
    """One line that says where the value stands, what it must be and what it is."""
    ours = error.get("ctx", {}).get("error")
    if ours is not None and not isinstance(ours, WrongKindError):
        return str(ours)
    name = str(error["loc"][0])
    field, value = Settings.model_fields[name], error["input"]
    if get_origin(field.annotation) is Literal:
        return f"{_place(name, flags)} must be {', '.join(get_args(field.annotation))}, not {value}"
    if error["type"].startswith(("greater_than", "less_than")):
        return f"{_place(name, flags)} must be {_range(field)}, not {value}"
    return f"{_place(name, flags)} must be {_KINDS.get(field.annotation, 'a list of texts')}, not {value!r}"


def _range(field: FieldInfo) -> str:
    bounds = {end: getattr(item, end) for item in field.metadata for end in ("gt", "ge", "le") if hasattr(item, end)}
    if "gt" in bounds:
        return f"above {bounds['gt']}"
    if "le" in bounds:
        return f"{bounds['ge']} to {bounds['le']}"
    return f"at least {bounds['ge']}" if bounds["ge"] else "0 or more"


def _place(name: str, flags: dict[str, Any]) -> str:
    """Where the value of a setting stands, as the operator would look for it."""
    if name in flags:
        return option(name)
    in_environment = ENV_PREFIX + name.upper()
    if in_environment in map(str.upper, os.environ):
        return in_environment
    return f"{flags.get('config') or os.environ.get(ENV_PREFIX + 'CONFIG')}: {name}"
