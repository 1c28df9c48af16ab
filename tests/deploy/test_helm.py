"""What the chart renders, by helm itself; nothing is installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.command_line import load
from tests.deploy import programs

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "hotswap"
Objects = dict[tuple[str, str], dict[str, Any]]
EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "settings": {"model": "ORG/NAME", "max-prompt-chars": 3_000_000, "kv-cache-gb": 2.5, "docs": True},
    "keys": {"api": ["one", "two"], "admin": ["master"]},
    "catalog": {"url": "postgresql://u:p@db/hotswap"},
    "artifacts": "s3://bucket/prefix",
    "ingress": {"enabled": True, "host": "llm.example", "tlsSecret": "certificate"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "monitoring"}},
    "prometheusRule": {"enabled": True},
    "alertmanagerConfig": {
        "enabled": True,
        "onCall": {"webhookConfigs": [{"urlSecret": {"name": "hooks", "key": "on-call"}}]},
    },
    "dashboards": {"enabled": True},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "fast"},
}


def helm(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        program = programs.helm() / "helm"
    except programs.MissingProgramError as error:
        pytest.skip(str(error))
    return subprocess.run([program, *arguments], input=given, capture_output=True, text=True, check=False)


def render(values: dict[str, Any]) -> Objects:
    """Objects by kind and name, of the release ``rel``."""
    done = helm("template", "rel", str(CHART), "-f", "-", given=yaml.safe_dump(values))
    assert done.returncode == 0, done.stderr
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


@pytest.fixture(scope="module")
def plain() -> Objects:
    return render({})


@pytest.fixture(scope="module")
def full() -> Objects:
    return render(EVERYTHING)


def pod_of(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = objects[("Deployment", "rel-hotswap")]["spec"]["template"]["spec"]
    return found


def test_the_chart_is_sound() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_release_is_made_of(plain: Objects, full: Objects) -> None:
    assert {kind for kind, _ in plain} == {"Secret", "PersistentVolumeClaim", "Service", "Deployment"}
    more = {"Ingress", "ServiceMonitor", "PrometheusRule", "AlertmanagerConfig", "ConfigMap"}
    assert {kind for kind, _ in full} == ({kind for kind, _ in plain} | more) - {"PersistentVolumeClaim"}


def test_everything_finds_the_pods(full: Objects) -> None:
    labels = full[("Deployment", "rel-hotswap")]["spec"]["template"]["metadata"]["labels"]
    service, monitor = full[("Service", "rel-hotswap")], full[("ServiceMonitor", "rel-hotswap")]
    selector = full[("Deployment", "rel-hotswap")]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "monitoring"
    ports = {port["name"]: port["containerPort"] for port in pod_of(full)["containers"][0]["ports"]}
    assert ports == {"http": 8000}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }


def test_settings_are_those_of_the_server(full: Objects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = {name: found["stringData"] for (kind, name), found in full.items() if kind == "Secret"}
    for variable in pod_of(full)["containers"][0]["env"]:
        name, value = variable["name"], variable.get("value")
        if value is None:
            reference = variable["valueFrom"]["secretKeyRef"]
            value = secrets[reference["name"]][reference["key"]]
        if name.endswith("_FILE"):
            (tmp_path / name).write_text(secrets["rel-hotswap-keys"][Path(value).name])
            value = str(tmp_path / name)
        monkeypatch.setenv(name, value)
    config = load([])
    assert (config.engine.model, config.max_prompt_chars, config.engine.kv_cache_gb) == ("ORG/NAME", 3_000_000, 2.5)
    assert (config.docs, config.artifacts, config.drain_seconds) == (True, "s3://bucket/prefix", 30.0)
    assert config.catalog == "postgresql://u:p@db/hotswap"
    assert (len(config.api_keys), len(config.admin_keys)) == (3, 1), "one is Prometheus's"
    assert pod_of(full)["terminationGracePeriodSeconds"] > config.drain_seconds
    assert not pod_of(full)["enableServiceLinks"], "they would set HOTSWAP_PORT"


def test_keys_are_made_up_where_none_are_given(plain: Objects) -> None:
    data = plain[("Secret", "rel-hotswap-keys")]["stringData"]
    assert data["api-keys"].split() == [data["metrics-key"]]
    assert len(data["metrics-key"]) == len(data["admin-keys"].strip()) == 40
    other = render({})[("Secret", "rel-hotswap-keys")]["stringData"]
    assert other["metrics-key"] != data["metrics-key"]


def test_every_server_has_a_volume_of_its_own(plain: Objects, full: Objects) -> None:
    def volume(objects: Objects) -> dict[str, Any]:
        (found,) = (volume for volume in pod_of(objects)["volumes"] if volume["name"] == "data")
        assert isinstance(found, dict)
        return found

    assert volume(plain)["persistentVolumeClaim"]["claimName"] == "rel-hotswap-data"
    assert ("PersistentVolumeClaim", "rel-hotswap-data") in plain
    assert plain[("Deployment", "rel-hotswap")]["spec"]["strategy"]["type"] == "Recreate"
    assert "ephemeral" in volume(full)
    assert full[("Deployment", "rel-hotswap")]["spec"]["strategy"]["type"] == "RollingUpdate"


def test_dashboards_and_rules_are_the_files(full: Objects) -> None:
    maps = [found for (kind, _), found in full.items() if kind == "ConfigMap"]
    written = {path.name: path.read_text() for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")}
    assert {name: text for found in maps for name, text in found["data"].items()} == written
    assert {found["metadata"]["labels"]["grafana_dashboard"] for found in maps} == {"1"}
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        rule["labels"]["namespace"] = "default"
    assert full[("PrometheusRule", "rel-hotswap")]["spec"] == rules


def test_who_is_told_of_alerts_is_as_in_the_file(full: Objects) -> None:
    spec = full[("AlertmanagerConfig", "rel-hotswap")]["spec"]
    wanted = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alertmanager.yml").read_text())
    assert plain_words(spec["route"]) == wanted["route"]
    assert [plain_words(rule) for rule in spec["inhibitRules"]] == wanted["inhibit_rules"]
    assert [receiver["name"] for receiver in spec["receivers"]] == [one["name"] for one in wanted["receivers"]]
    assert spec["receivers"][1]["webhookConfigs"] == [{"urlSecret": {"name": "hooks", "key": "on-call"}}]


def plain_words(found: dict[str, Any]) -> dict[str, Any]:
    """What the operator makes of a route or of an inhibition."""
    words = {"sourceMatch": "source_matchers", "targetMatch": "target_matchers", "matchers": "matchers"}

    def plain_value(name: str, value: Any) -> Any:
        if name in words:
            return [f'{one["name"]}{one["matchType"]}"{one["value"]}"' for one in value]
        return [plain_words(one) for one in value] if name == "routes" else value

    names = {name: words.get(name) or re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name) for name in found}
    return {names[name]: plain_value(name, value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 2}, "replicas > 1 needs catalog.url"),
        ({"replicas": 2, "catalog": {"url": "postgresql://h/d"}}, "replicas > 1 needs artifacts"),
        ({"settings": {"api-key": "x"}}, "api-key"),
        ({"ingress": {"enabled": True}}, "ingress.host"),
        ({"replica": 2}, "replica"),
        ({"alertmanagerConfig": {"onCall": {"url": "http://x"}}}, "'url' does not match pattern 'Configs$'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], said: str) -> None:
    done = helm("template", "rel", str(CHART), "-f", "-", given=yaml.safe_dump(values))
    assert done.returncode != 0
    assert said in done.stderr
