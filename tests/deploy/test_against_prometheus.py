"""Everything that dashboards and rules ask of Prometheus is asked of a real one, which scrapes a real server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.grafana.make import DASHBOARDS
from deploy.grafana.panels import to_json
from tests.deploy import programs
from tests.deploy.prometheus import Prometheus, scraping
from tests.deploy.traffic import cause_everything, make_packages, watched_server
from tests.server.live import Live, wait_until

pytestmark = pytest.mark.slow  # twenty seconds of traffic and scrapes; dashboards and rules seldom change

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
CHOICES = {
    "$__rate_interval": "20s", "$__range": "1m", "$model": ".*", "$instance": ".*", "$adapter": ".*", "$version": ".*",
}  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A server that has been through much, and the Prometheus that saw it."""

    live: Live
    prometheus: Prometheus


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    try:
        program = programs.prometheus() / "prometheus"
    except programs.MissingProgramError as error:
        pytest.skip(str(error))
    base, packages = make_packages(tmp_path_factory.mktemp("packages"))
    with (
        watched_server(base, packages, tmp_path_factory.mktemp("data")) as live,
        scraping(program, tmp_path_factory.mktemp("prometheus"), live.url.removeprefix("http://"), RULES) as prometheus,
    ):
        wait_until(lambda: prometheus.has_data("up == 1"), "Prometheus to scrape the server")
        cause_everything(live, packages, prometheus.has_data)
        yield Watched(live, prometheus)


def chosen(expr: str) -> str:
    """An expression as Grafana sends it when everything is chosen."""
    for name, value in sorted(CHOICES.items(), key=lambda item: -len(item[0])):
        expr = expr.replace(name, value)
    assert not re.search(r"\$\w{2,}", expr), expr
    return expr


def panels() -> Iterator[tuple[str, str]]:
    """Where each expression is, and the expression."""
    for dashboard in DASHBOARDS:
        shown = to_json(dashboard)
        for panel in shown["panels"]:
            for target in panel.get("targets", ()):
                yield f"{dashboard.uid}: {panel['title']} {target['refId']}", chosen(target["expr"])
        for mark in shown["annotations"]["list"]:
            yield f"{dashboard.uid}: marks of {mark['name']}", chosen(mark["expr"])


def test_every_panel_has_data(watched: Watched) -> None:
    empty = [f"{where}: {expr}" for where, expr in panels() if not watched.prometheus.has_data(expr)]
    assert not empty, "\n".join(empty)


def test_every_choice_has_values(watched: Watched) -> None:
    found: dict[str, set[str]] = {}
    for variable in (variable for dashboard in DASHBOARDS for variable in dashboard.variables):
        if parts := re.fullmatch(r"label_values\((.+), (\w+)\)", variable.query):
            values = watched.prometheus.label_values(parts[2], chosen(parts[1]))
        else:
            inner = re.fullmatch(r"query_result\((.+)\)", variable.query)
            assert inner is not None
            regex = re.compile(variable.regex.strip("/").replace("(?<", "(?P<"))
            rows = [one["metric"] for one in watched.prometheus.instant(chosen(inner[1]))]
            # as Grafana spells them for the regular expression
            lines = ["{" + ",".join(f'{k}="{v}"' for k, v in row.items()) + "}" for row in rows]
            matches = [match for line in lines if (match := regex.search(line))]
            assert {match["value"] for match in matches if match["text"] == "(base)"} == {"^$"}
            values = [match["value"] for match in matches]
        found.setdefault(variable.name, set()).update(values)
    assert found["model"] == {"tiny"}
    assert found["adapter"] == {"^$", "a", "b", "c"}
    assert {"1", "2"} <= found["version"]
    assert found["instance"] == {watched.live.url.removeprefix("http://")}


def test_every_rule_is_evaluated_and_every_measure_has_data(watched: Watched) -> None:
    rules: list[dict[str, Any]] = watched.prometheus.rules()
    written = yaml.safe_load(RULES.read_text())["groups"]
    assert len(rules) == sum(len(group["rules"]) for group in written)
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    named = {name for rule in rules for name in re.findall(r"\bhotswap[:_][a-z0-9_:]+|\bup\b", rule["query"])}
    names = sorted(named | {rule["name"] for rule in rules if rule["type"] == "recording"})
    assert [name for name in names if not watched.prometheus.has_data(name)] == []


def test_a_lost_engine_is_an_alert(watched: Watched) -> None:
    firing = watched.prometheus.instant('ALERTS{alertstate="firing"}')
    assert "HotswapEngineRestarted" in {alert["metric"]["alertname"] for alert in firing}


def test_the_page_of_metrics_has_all_of_them(watched: Watched) -> None:
    with watched.live.http() as http:
        families = text_string_to_metric_families(http.get("/metrics").text)
        told = {one.name + "_total" * (one.type == "counter") for one in families}
    kept = {name for name in told if name.startswith("hotswap_") and not name.endswith("_created")}
    page = (ROOT / "docs" / "observability.md").read_text()
    listed = set(re.findall(r"\bhotswap_[a-z0-9_]*[a-z0-9]\b(?!_?\*)", page))
    assert listed == {name for name in kept if not name.startswith("hotswap_engine_process_")}


def test_names_and_units_of_metrics_are_as_promtool_wants(watched: Watched) -> None:
    with watched.live.http() as http:
        lines = http.get("/metrics").text.splitlines(keepends=True)
    own = "".join(line for line in lines if "vllm:" not in line)  # whose names others gave
    promtool = programs.prometheus() / "promtool"
    done = subprocess.run([promtool, "check", "metrics"], input=own, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
