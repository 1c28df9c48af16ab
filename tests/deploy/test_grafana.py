"""The files of the dashboards, and how they are provisioned."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.make import DASHBOARDS, FOLDER, text
from deploy.grafana.panels import COLUMNS

UIDS = ("hotswap-overview", "hotswap-adapter", "hotswap-engine", "hotswap-jobs")  # parts of addresses that people keep


def test_files_are_current() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert written == {f"{each.uid}.json": text(each) for each in DASHBOARDS}, "python -m deploy.grafana.make"


def test_addresses_stay() -> None:
    assert tuple(dashboard.uid for dashboard in DASHBOARDS) == UIDS


@pytest.mark.parametrize("uid", UIDS)
def test_panels(uid: str) -> None:
    dashboard: dict[str, Any] = json.loads((FOLDER / f"{uid}.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert Counter(panel["id"] for panel in panels).most_common(1)[0][1] == 1
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names[:3] == ["datasource", "model", "instance"]


def test_provisioning_finds_prometheus_and_the_files() -> None:
    folder = FOLDER.parent / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert [source["type"] for source in sources if source.get("isDefault")] == ["prometheus"]
    compose = yaml.safe_load((FOLDER.parents[1] / "compose.yaml").read_text())["services"]
    for source in sources:
        _, host, port = source["url"].replace("//", "").split(":")
        assert compose[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "hotswap.yaml").read_text())["providers"]
    assert Path(provider["options"]["path"]).name == FOLDER.name
