from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from server.config import EngineConfig
from server.setting_kinds import hash_key
from server.settings import ServerConfig


def test_defaults() -> None:
    config = ServerConfig()
    assert (config.host, config.port, config.engine.quantize) == ("127.0.0.1", 8000, "auto")
    assert (*config.api_keys, *config.admin_keys, *config.adapter) == ()
    assert config.admin_is_open


def test_the_surroundings_change_no_configuration_made_in_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSWAP_PORT", "1")
    assert ServerConfig().port == 8000


def test_the_engine_is_told_what_was_set() -> None:
    config = ServerConfig.model_validate({"model": "/base", "max_num_seqs": 3, "kv_cache_gb": 0.5})
    assert config.engine == EngineConfig(model="/base", max_num_seqs=3, kv_cache_gb=0.5)
    assert ServerConfig().engine == EngineConfig()


def test_keys_are_kept_as_digests_only(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfrom-file\n\n  spaced  \n")
    config = ServerConfig.model_validate({"api_key": "one", "api_key_file": [str(path)], "admin_key": ["master"]})
    assert config.api_keys == tuple(hashlib.sha256(k).digest() for k in (b"one", b"from-file", b"spaced"))
    assert config.admin_keys == (hash_key("master"),)
    for key in ("one", "from-file", "master"):
        assert f"'{key}'" not in repr(config)
        assert key.encode() not in repr(config.model_dump()).encode()
    assert not config.admin_is_open


def test_a_refusal_shows_no_key() -> None:
    with pytest.raises(ValueError, match="admin_key") as refused:
        ServerConfig.model_validate({"admin_key": ["hidden", 1], "port": -1})
    assert "hidden" not in str(refused.value)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServerConfig().port = 1


def test_other_hosts_with_a_key() -> None:
    config = ServerConfig.model_validate({"host": "0.0.0.0", "admin_key": "k"})
    assert not config.is_loopback
    assert not config.admin_is_open


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.9", "::1"])
def test_loopback(host: str) -> None:
    assert ServerConfig(host=host).is_loopback
