from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from server.settings import SETTINGS, hash_key, load, parser


def test_defaults() -> None:
    config = load([], {})
    assert (config.host, config.port, config.engine.quantize) == ("127.0.0.1", 8000, "auto")
    assert (*config.api_keys, *config.admin_keys, *config.adapters) == ()
    assert config.admin_is_open


def test_flags_over_environment_over_file(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("port: 1\nmax-num-seqs: 2\nkv_cache_gb: 3\nadapter: {a: /x, b: /y}\nprefix_caching: false\n")
    environ = {"HOTSWAP_CONFIG": str(path), "HOTSWAP_MAX_NUM_SEQS": "5", "HOTSWAP_PORT": "6"}
    config = load(["--port", "7", "--no-trust-remote-code"], environ)
    assert (config.port, config.engine.max_num_seqs, config.engine.kv_cache_gb) == (7, 5, 3.0)
    assert config.adapters == (("a", "/x"), ("b", "/y"))
    assert not config.engine.prefix_caching
    assert load(["--config", str(path)], {}).port == 1


def test_lists_repeat_or_have_commas() -> None:
    flags = load(["--adapter", "a=/x", "--adapter", "b=/y,z"], {})
    assert flags.adapters == (("a", "/x"), ("b", "/y,z"))
    assert load([], {"HOTSWAP_ADAPTER": "a=/x, b=/y"}).adapters == (("a", "/x"), ("b", "/y"))


def test_keys_are_kept_as_digests_only(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfrom-file\n\n  spaced  \n")
    config = load(["--api-key", "one", "--api-key-file", str(path)], {"HOTSWAP_ADMIN_KEY": "root"})
    assert config.api_keys == tuple(hashlib.sha256(k).digest() for k in (b"one", b"from-file", b"spaced"))
    assert config.admin_keys == (hash_key("root"),)
    assert "from-file" not in repr(config)
    assert not config.admin_is_open


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--port", "x"], "--port must be a whole number, not 'x'"),
        (["--kv-cache-gb", "-1"], "--kv-cache-gb must be above 0"),
        (["--kv-cache-gb", "nan"], "--kv-cache-gb"),
        (["--quantize", "int4"], "--quantize must be one of auto, nf4, nf4-dq, fp4, fp4-dq, int8, none"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
        (["--max-waiting-requests", "-1"], "--max-waiting-requests must be 0 or more"),
        (["--max-body-mb", "0"], "--max-body-mb must be above 0"),
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
        load(argv, {})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("quantise: nf4", "unknown setting 'quantise'; did you mean quantize?"),
        ("port: [1]", "port must be a whole number"),
        ("port: 1.5", "port must be a whole number"),
        ("port: true", "port must be a whole number"),
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
        load(["--config", str(path)], {})
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        load(["--config", str(path)], {})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("")
    assert load(["--config", str(path)], {}) == load([], {})


def test_a_wrong_environment_is_named() -> None:
    with pytest.raises(ValueError, match="HOTSWAP_PORT must be a whole number"):
        load([], {"HOTSWAP_PORT": "http"})


def test_other_hosts_with_a_key() -> None:
    config = load(["--host", "0.0.0.0", "--admin-key", "k"], {})
    assert not config.is_loopback
    assert not config.admin_is_open


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.9", "::1"])
def test_loopback(host: str) -> None:
    assert load(["--host", host], {}).is_loopback


def test_help_names_every_setting() -> None:
    text = parser().format_help()
    for setting in SETTINGS:
        assert setting.flag in text
        assert setting.help.split()[0] in text


def test_a_flag_without_value_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(["--port"], {})
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
