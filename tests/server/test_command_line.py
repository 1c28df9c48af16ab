from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.keys import KeyTable
from server.catalog.key_changes import KeyChanges
from server.catalog.keys import Scope, new_key
from server.command_line import Settings, load, option, parser
from server.config import EngineConfig, Flag
from server.settings import ServerConfig


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HOTSWAP_")]:
        monkeypatch.delenv(name)


def test_flags_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("port: 1\nmax-num-seqs: 2\nkv_cache_gb: 3\nadapter: {a: /x, b: /y}\nprefix_caching: false\n")
    assert load(["--config", str(path)]).port == 1
    for name, value in (("CONFIG", str(path)), ("MAX_NUM_SEQS", "5"), ("PORT", "6")):
        monkeypatch.setenv(f"HOTSWAP_{name}", value)
    config = load(["--port", "7", "--no-trust-remote-code"])
    assert (config.port, config.engine.max_num_seqs, config.engine.kv_cache_gb) == (7, 5, 3.0)
    assert config.adapter == (("a", "/x"), ("b", "/y"))
    assert not config.engine.prefix_caching


def test_lists_repeat_or_have_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = load(["--adapter", "a=/x", "--adapter", "b=/y,z"])
    assert flags.adapter == (("a", "/x"), ("b", "/y,z"))
    monkeypatch.setenv("HOTSWAP_ADAPTER", "a=/x, b=/y")
    assert load([]).adapter == (("a", "/x"), ("b", "/y"))


def example(name: str) -> str:
    """A value that ``name`` takes and that is not its default."""
    special = {"quantize": "int8", "dtype": "bfloat16", "kv_dtype": "int8", "forward": "generic", "log_level": "debug",
               "adapter": "name=/path", "artifacts": "s3://bucket", "artifacts_option": "anon=true",
               "cors_origin": "https://a.example", "speculation": "off",
               "otlp_traces_endpoint": "http://collector:4318/v1/traces", "trace_ratio": "0.5",
               "tool_parser": "hermes", "reasoning_parser": "think", "cors_method": "POST",
               "scheduling": "fcfs", "fine_tuning_gate": "none", "load_adapters": "lazy",
               "uds_access": "group"}  # fmt: skip
    by_kind: dict[Any, str] = {int: "3", float: "2.5", bool: "false" if Settings.model_fields[name].default else "true"}
    return special.get(name) or by_kind.get(Settings.model_fields[name].annotation, "text")


@pytest.mark.parametrize("name", [name for name in ServerConfig.model_fields if not name.endswith("_file")])
def test_every_setting_by_flag_environment_and_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = example(name)
    switch = {"true": option(name), "false": option(f"no_{name}")}.get(value)
    keys = ["--admin-key", "k"] if name == "host" else []
    by_flag = load([*keys, *([switch] if switch else [option(name), value])])
    path = tmp_path / "c.yaml"
    path.write_text(f"{name.replace('_', '-')}: {value}\n")
    by_file = load([*keys, "--config", str(path)])
    monkeypatch.setenv(f"HOTSWAP_{name.upper()}", value)
    by_environment = load(keys)
    assert getattr(by_flag, name) == getattr(by_file, name) == getattr(by_environment, name)
    assert getattr(by_flag, name) != ServerConfig.model_fields[name].default
    if name in EngineConfig.__struct_fields__:
        assert getattr(by_flag.engine, name) == getattr(by_flag, name)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--port", "x"], "--port must be a whole number, not 'x'"),
        (["--kv-cache-gb", "-1"], "--kv-cache-gb must be above 0"),
        (["--kv-cache-gb", "nan"], "--kv-cache-gb"),
        (["--quantize", "int4"], "--quantize must be one of auto, nf4, nf4-dq, fp4, fp4-dq, int8, gguf, none"),
        (["--kv-dtype", "int4"], "--kv-dtype must be one of auto, float32, bfloat16, float16, int8"),
        (["--forward", "fast"], "--forward must be one of auto, generic"),
        (["--speculation", "on"], "--speculation must be one of auto, off, not 'on'"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
        (["--max-waiting-requests", "-1"], "--max-waiting-requests must be 0 or more"),
        (["--max-body-mb", "0"], "--max-body-mb must be above 0"),
        (
            ["--otlp-traces-endpoint", "localhost:4317"],
            "--otlp-traces-endpoint wants a URL such as http://localhost:4318",
        ),
        (["--trace-ratio", "1.5"], "--trace-ratio must be 0 to 1"),
        (["--log-level", "loud"], "--log-level must be debug, info, warning, error"),
        (["--adapter", "nopath"], "--adapter wants NAME=PATH"),
        (["--adapter", "a=/x", "--adapter", "a=/y"], "names 'a' twice"),
        (["--host", "0.0.0.0"], "--admin-key"),
        (["--api-key", ""], "empty"),
        (["--api-key-file", "/nowhere/keys"], "cannot read /nowhere/keys"),
        (["--config", "/nowhere/c.yaml"], "cannot read /nowhere/c.yaml"),
        (["--quantise", "nf4"], "did you mean --quantize?"),
        (["--prot=8"], "did you mean --port?"),
        (["model"], "unknown argument 'model'"),
    ],
)
def test_bad_flags(argv: list[str], words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked below
        load(argv)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("quantise: nf4", "unknown setting 'quantise'; did you mean quantize?"),
        ("port: [1]", "port must be a whole number"),
        ("port: 1.5", "port must be a whole number"),
        ("port: true", "port must be a whole number"),
        ("port:", "port must be a whole number, not None"),
        ("port: 65536", "port must be 0 to 65535, not 65536"),
        ("drain_seconds: yes", "drain_seconds must be a number, not True"),
        ("model: [a]", "model must be a text"),
        ("api_key: [1]", "api_key must be a list of texts"),
        ("config: other.yaml", "unknown setting 'config'"),
        ("adapter: 5", "adapter must be a list of texts"),
        ("prefix_caching: maybe", "prefix_caching must be true or false"),
        ("- a\n- b", "must hold settings"),
        ("a: [", "is not valid YAML (line 1)"),
        ("model: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(["--config", str(path)])
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        load(["--config", str(path)])


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("")
    assert load(["--config", str(path)]).model_copy(update={"config": ""}) == load([])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "HOTSWAP_PORT must be a whole number, not 'http'"),
        ("PORT", "-1", "HOTSWAP_PORT must be 0 to 65535, not -1"),
        ("PUBLIC_METRICS", "perhaps", "HOTSWAP_PUBLIC_METRICS must be true or false, not 'perhaps'"),
        ("CONFIG", "/nowhere/c.yaml", "cannot read /nowhere/c.yaml"),
    ],
)
def test_a_wrong_environment_is_named(name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HOTSWAP_{name}", value)
    with pytest.raises(ValueError, match=words):
        load([])


def test_help_names_every_setting() -> None:
    text = " ".join(parser().format_help().split())
    for name, field in Settings.model_fields.items():
        flag = next(item for item in field.metadata if isinstance(item, Flag))
        assert option(name) in text
        assert flag.help.partition(" (")[0] in text
    assert "{default}" not in text
    assert "tokens of one step (default 512)" in text
    assert "memory for the KV cache (default 1)" in text
    assert "share the KV of equal prompt beginnings (default on)" in text


def test_a_flag_without_value_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(["--port"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_keys_of_the_catalog_let_it_listen_to_other_machines(tmp_path: Path) -> None:
    argv = ["--host", "0.0.0.0", "--data-dir", str(tmp_path)]
    with closing(Database(sqlite_url(tmp_path))) as database:
        database.migrate()
        with pytest.raises(ValueError, match="no key is configured"):
            load(argv)
        KeyChanges(KeyTable(database)).add(new_key("n", [Scope.ADMIN], now=0.0)[0])
    assert load(argv).host == "0.0.0.0"
    assert load([*argv, "--catalog", sqlite_url(tmp_path)]).host == "0.0.0.0"
