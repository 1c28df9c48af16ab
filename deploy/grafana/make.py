"""Writes the dashboards: ``python -m deploy.grafana.make``."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.adapter import ADAPTER_DASHBOARD
from deploy.grafana.engine import ENGINE
from deploy.grafana.jobs import JOBS
from deploy.grafana.overview import OVERVIEW
from deploy.grafana.panels import Dashboard, to_json

DASHBOARDS = (OVERVIEW, ADAPTER_DASHBOARD, ENGINE, JOBS)
FOLDER = Path(__file__).parent / "dashboards"


def text(dashboard: Dashboard) -> str:
    """A dashboard as its file holds it."""
    return json.dumps(to_json(dashboard), indent=1) + "\n"


def main() -> None:
    """Write all files, and delete those of dashboards that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.uid}.json").write_text(text(dashboard), encoding="utf-8")


if __name__ == "__main__":
    main()
