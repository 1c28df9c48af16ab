"""The services of one machine, as Docker Compose itself reads them; nothing is started."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.command_line import load
from tests.deploy import programs

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy"


def read(**environment: str) -> dict[str, Any]:
    """All services, with the environment filled in."""
    try:
        program = programs.compose() / "docker-compose"
    except programs.MissingProgramError as error:
        pytest.skip(str(error))
    command = [str(program), "-f", str(FOLDER / "compose.yaml"), "config", "--format", "json"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOTSWAP_", "POSTGRES_"))}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read()["services"]
    return found


def test_all_that_is_needed_is_there_and_only_this_machine_can_reach_it(services: dict[str, Any]) -> None:
    assert set(services) == {"hotswap", "postgres", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        assert service.get("build") or ":" in service["image"], f"{name} is of no certain version"
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}, name
        assert name == "hotswap" or service["healthcheck"]["test"], "its image has one"
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_every_file_that_is_mounted_is_there(services: dict[str, Any]) -> None:
    binds = [mount for service in services.values() for mount in service.get("volumes", ()) if mount["type"] == "bind"]
    assert len(binds) == 5
    for mount in binds:
        assert Path(mount["source"]).exists(), mount
        assert mount["read_only"], mount


def test_prometheus_finds_the_server_and_its_key(services: dict[str, Any]) -> None:
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    job = config["scrape_configs"][0]
    assert job["static_configs"] == [{"targets": ["hotswap:8000"]}]
    key = {item["target"]: item["source"] for item in services["prometheus"]["configs"]}
    source = key[job["authorization"]["credentials_file"]]
    ours = {item["source"]: item["target"] for item in services["hotswap"]["configs"]}
    assert ours[source] == services["hotswap"]["environment"]["HOTSWAP_API_KEY_FILE"]


def test_prometheus_finds_alertmanager_and_its_configuration(services: dict[str, Any]) -> None:
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    ((target,),) = ([*one["targets"]] for each in config["alerting"]["alertmanagers"] for one in each["static_configs"])
    name, port = target.split(":")
    assert [str(each["target"]) for each in services[name]["ports"]] == [port]
    mounts = {mount["target"]: mount["source"] for mount in services[name]["volumes"]}
    (file,) = (one.removeprefix("--config.file=") for one in services[name]["command"] if "config.file" in one)
    assert Path(mounts[file]) == FOLDER / "prometheus" / "alertmanager.yml"


def test_settings_and_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = read(HOTSWAP_API_KEY="mine", POSTGRES_PASSWORD="secret", HOTSWAP_MODEL="ORG/NAME")
    assert found["configs"]["hotswap-api-key"]["content"] == "mine"
    assert found["configs"]["hotswap-admin-key"]["content"] == "local-admin"
    assert found["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"] == "secret"
    for name, value in found["services"]["hotswap"]["environment"].items():
        if name.endswith("_FILE"):
            (tmp_path / name).write_text("key")
        monkeypatch.setenv(name, str(tmp_path / name) if name.endswith("_FILE") else value)
    config = load([])
    assert config.catalog == "postgresql://hotswap:secret@postgres:5432/hotswap"
    assert config.engine.model == "ORG/NAME"
    assert (len(config.api_keys), len(config.admin_keys)) == (1, 1)
