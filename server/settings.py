"""Where settings come from: flags over environment (HOTSWAP_*) over a YAML file over defaults.

One table describes every setting; the parser, the environment and the file are all read by it. It does not know what
the settings mean: ``server.config`` checks them.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from bases.names import SERVED_QUANTIZATIONS
from server.config import EngineConfig, ServerConfig

ENV_PREFIX = "HOTSWAP_"
DEFAULT_MODEL = "default"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Setting:
    """One setting: ``name`` as in the YAML file; ``kind`` is str, int, float, bool or list (of str)."""

    name: str
    kind: type
    group: str
    help: str
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """The command line's name."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment's name."""
        return ENV_PREFIX + self.name.upper()


_BASE, _HTTP, _KEYS, _LIMITS = "base model and engine", "address", "keys", "limits and the rest"
SETTINGS = (
    Setting("model", str, _BASE, "the base: hub id, directory or GGUF file (default: a small built-in one)", "ID|PATH"),
    Setting("served_model_name", str, _BASE, "name clients use for the base (default: its own name)", "NAME"),
    Setting("adapter", list, _BASE, "serve this adapter package (directory or archive); repeatable", "NAME=PATH"),
    Setting("quantize", str, _BASE, f"{', '.join(SERVED_QUANTIZATIONS[1:])} (default: as saved, or nf4)", "HOW"),
    Setting("dtype", str, _BASE, "auto, float32, bfloat16 or float16 (default auto)", "TYPE"),
    Setting("device", str, _BASE, "auto, cpu or cuda (default auto)", "DEVICE"),
    Setting("max_model_len", int, _BASE, "positions of one sequence (default: what the base allows)", "N"),
    Setting("max_num_seqs", int, _BASE, "sequences computed at once (default 64)", "N"),
    Setting("max_num_batched_tokens", int, _BASE, "tokens of one step (default 512)", "N"),
    Setting("block_size", int, _BASE, "positions of one KV block (default 16)", "N"),
    Setting("allow_noop", bool, _BASE, "serve --adapter packages that answer exactly as the base does (default off)"),
    Setting("kv_cache_gb", float, _BASE, "memory for the KV cache (default 1)", "GB"),
    Setting("prefix_caching", bool, _BASE, "share the KV of equal prompt beginnings (default on)"),
    Setting("threads", int, _BASE, "CPU threads of the engine (default: torch's choice)", "N"),
    Setting("trust_remote_code", bool, _BASE, "run model code that comes with the base (default off)"),
    Setting("chat_template", str, _BASE, "Jinja file to use instead of the base's chat template", "FILE"),
    Setting("host", str, _HTTP, "address to listen on (default 127.0.0.1: this machine only)", "ADDRESS"),
    Setting("port", int, _HTTP, "port to listen on (default 8000; 0: any free one)", "PORT"),
    Setting("api_key", list, _KEYS, "key for inference; repeatable", "KEY"),
    Setting("api_key_file", list, _KEYS, "file with one inference key a line; repeatable", "FILE"),
    Setting("admin_key", list, _KEYS, "key for the admin API, and for inference; repeatable", "KEY"),
    Setting("admin_key_file", list, _KEYS, "file with one admin key a line; repeatable", "FILE"),
    Setting("public_metrics", bool, _KEYS, "serve /metrics without a key even where keys are configured (default off)"),
    Setting("max_waiting_requests", int, _LIMITS, "sequences queued before new ones get 429 (default 512)", "N"),
    Setting("max_sequences_per_request", int, _LIMITS, "n times prompts of one request (default 256)", "N"),
    Setting("max_stop_strings", int, _LIMITS, "stop strings of one request (default 16)", "N"),
    Setting("max_body_mb", float, _LIMITS, "size of one JSON request (default 8)", "MB"),
    Setting("max_upload_mb", float, _LIMITS, "size of one adapter upload (default 2048)", "MB"),
    Setting("drain_seconds", float, _LIMITS, "time running requests get to finish at shutdown (default 30)", "S"),
    Setting("metrics_adapters", int, _LIMITS, "adapters with metrics of their own (default 100)", "N"),
    Setting("max_candidates", int, _LIMITS, "adapter versions uploaded but not live, at once (default 16)", "N"),
    Setting("data_dir", str, _LIMITS, "where adapter packages are kept (default: a temporary directory)", "DIR"),
    Setting("log_level", str, _LIMITS, "debug, info, warning or error (default info)", "LEVEL"),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


class _Parser(argparse.ArgumentParser):
    """Ends with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of ``hotswap serve``; every absent flag is None."""
    out = _Parser(
        prog="hotswap serve",
        description="Serve one base model and its adapters over the OpenAI API.",
        epilog="Every flag can also be given as HOTSWAP_<NAME> in the environment (lists separated by commas) or as "
        "<name> in the YAML file; flags win over the environment, which wins over the file.",
        allow_abbrev=False,
    )
    out.add_argument("--config", metavar="FILE", help="YAML file of settings")
    groups = {title: out.add_argument_group(title) for title in dict.fromkeys(s.group for s in SETTINGS)}
    for setting in SETTINGS:
        groups[setting.group].add_argument(setting.flag, help=setting.help, **_argparse_options(setting))
    return out


def _argparse_options(setting: Setting) -> dict[str, Any]:
    if setting.kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if setting.kind is list:
        return {"action": "append", "metavar": setting.metavar}
    return {"metavar": setting.metavar}


def load(argv: Sequence[str], environ: Mapping[str, str]) -> ServerConfig:
    """The configuration of a command line. Raises ValueError with one clear line; exits 2 on bad flags."""
    commands = parser()
    namespace, unknown = commands.parse_known_args(list(argv))
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}{_nearest(unknown[0], [s.flag for s in SETTINGS])}")
    merged: dict[str, Any] = {}
    path = namespace.config or environ.get(ENV_PREFIX + "CONFIG")
    if path:
        merged.update(_from_file(Path(path)))
    merged.update({s.name: _convert(s, environ[s.env], s.env) for s in SETTINGS if s.env in environ})
    flags = {s.name: getattr(namespace, s.name) for s in SETTINGS}
    merged.update({k: _convert(_BY_NAME[k], v, _BY_NAME[k].flag) for k, v in flags.items() if v is not None})
    return build(merged)


def build(values: Mapping[str, Any]) -> ServerConfig:
    """The configuration of merged, converted settings. Raises ValueError naming the flag."""
    values = dict(values)
    extra: dict[str, Any] = {}
    if (adapters := values.pop("adapter", None)) is not None:
        extra["adapters"] = tuple(_name_and_path(item) for item in adapters)
    for scope in ("api_key", "admin_key"):
        keys = [*values.pop(scope, []), *_keys_of_files(values.pop(f"{scope}_file", []))]
        extra[f"{scope}s"] = tuple(hash_key(key) for key in keys)
    engine_fields = {k: values.pop(k) for k in EngineConfig.__struct_fields__ if k in values}
    engine = EngineConfig(**{"model": DEFAULT_MODEL, **engine_fields})
    return ServerConfig(engine=engine, **values, **extra)


def hash_key(key: str) -> bytes:
    """What is kept of a key. Raises ValueError for an empty one, which would let everyone in."""
    if not key.strip():
        raise ValueError("an API key is empty; give each --api-key and --admin-key a value")
    return hashlib.sha256(key.strip().encode()).digest()


def _keys_of_files(paths: Sequence[str]) -> list[str]:
    keys: list[str] = []
    for path in paths:
        found = [line.strip() for line in _read(Path(path)).splitlines() if line.strip() and not line.startswith("#")]
        if not found:
            raise ValueError(f"{path} holds no key; write one a line")
        keys += found
    return keys


def _name_and_path(item: str) -> tuple[str, str]:
    name, sep, path = item.partition("=")
    if not (name and sep and path):
        raise ValueError(f"--adapter wants NAME=PATH, not {item!r}")
    return name, path


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{path} is not valid YAML{where}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings as `name: value` lines")
    out: dict[str, Any] = {}
    for key, value in content.items():
        setting = _BY_NAME.get(str(key).replace("-", "_"))
        if setting is None:
            raise ValueError(f"{path}: unknown setting {str(key)!r}{_nearest(str(key), list(_BY_NAME))}")
        out[setting.name] = _convert(setting, value, f"{path}: {setting.name}")
    return out


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"cannot read {path}: {reason}") from error


def _nearest(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong.partition("=")[0], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(setting: Setting, value: Any, where: str) -> Any:
    """``value`` (text from a flag or the environment, or YAML) as the setting's kind; ``where`` is for the message."""
    if setting.kind is list:
        return _as_list(value, where)
    if setting.kind is bool:
        return _as_bool(value, where)
    if isinstance(value, bool | list | dict) or value is None or (setting.kind is int and isinstance(value, float)):
        raise ValueError(f"{where} must be {_wanted(setting.kind)}, not {value!r}")
    try:
        converted = setting.kind(value)
    except ValueError as error:
        raise ValueError(f"{where} must be {_wanted(setting.kind)}, not {value!r}") from error
    if setting.kind is float and not math.isfinite(converted):
        raise ValueError(f"{where} must be {_wanted(setting.kind)}, not {value!r}")
    return converted


def _wanted(kind: type) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, "a text")


def _as_list(value: Any, where: str) -> list[str]:
    if isinstance(value, dict):  # adapter: {name: path}
        return [f"{k}={v}" for k, v in value.items()]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return list(value)
    raise ValueError(f"{where} must be a list of texts, not {value!r}")


def _as_bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in _TRUE + _FALSE:
        return str(value).lower() in _TRUE
    raise ValueError(f"{where} must be true or false, not {value!r}")
