"""Panels and dashboards in the words of this project, and the JSON of Grafana 11 that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

COLUMNS = 24  # of Grafana's grid
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
Kind = Literal["timeseries", "stat", "gauge", "table", "heatmap", "bargauge"]
JSON = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One PromQL expression. ``legend`` names its series, by labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. ``steps`` are thresholds as (from, colour), of which the first is the colour below them.

    ``columns`` names the columns of a table, by label and by query (A, B, ...); ``links`` those that lead elsewhere.
    """

    title: str
    queries: Sequence[Query]
    about: str
    kind: Kind = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    top: float | None = None
    steps: Sequence[tuple[float | None, str]] = ()
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name and unit
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Panels below a headline."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice above a dashboard, from the values that ``query`` finds."""

    name: str
    label: str
    query: str
    many: bool = True
    regex: str = ""


@dataclass(frozen=True)
class Mark:
    """Vertical lines at moments that ``expr`` has as Unix seconds."""

    name: str
    expr: str
    title: str
    text: str
    colour: str


@dataclass(frozen=True)
class Dashboard:
    """A page. Its ``uid`` is part of its address, and stays."""

    uid: str
    title: str
    about: str
    variables: Sequence[Variable]
    marks: Sequence[Mark]
    rows: Sequence[Row]


def to_json(dashboard: Dashboard) -> JSON:
    """What Grafana provisions."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["hotswap"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "title": "hotswap", "tags": ["hotswap"], "asDropdown": False, "includeVars": True,
             "keepTime": True}
        ],
        "templating": {"list": [_SOURCE_VARIABLE, *map(_variable, dashboard.variables)]},
        "annotations": {"list": [_mark(mark) for mark in dashboard.marks]},
        "panels": _laid_out(dashboard.rows),
    }  # fmt: skip


_SOURCE_VARIABLE: JSON = {
    "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0, "current": {},
}  # fmt: skip


def _variable(variable: Variable) -> JSON:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": SOURCE,
        "definition": variable.query,
        "query": {"qryType": 5, "query": variable.query, "refId": variable.name},
        "regex": variable.regex,
        "refresh": 2,  # whenever the time range changes: adapters come and go
        "sort": 1,
        "multi": variable.many,
        "includeAll": variable.many,
        "allValue": ".*" if variable.many else None,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if variable.many else {},
    }


def _mark(mark: Mark) -> JSON:
    return {
        "name": mark.name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": mark.colour,
        "expr": f"{mark.expr} * 1000",  # in the milliseconds that Grafana wants
        "useValueForTime": True,
        "titleFormat": mark.title,
        "textFormat": mark.text,
        "tagKeys": "adapter,action",
        "step": "10s",
    }


def _laid_out(rows: Sequence[Row]) -> list[JSON]:
    """All panels, in lines of ``COLUMNS``."""
    out: list[JSON] = []
    y = 0
    for row in rows:
        at = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        out.append({"id": len(out) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": at,
                    "panels": []})  # fmt: skip
        y, x, tallest = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            at = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            out.append({"id": len(out) + 1, "gridPos": at, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return out


def _panel(panel: Panel) -> JSON:
    now = panel.kind in ("stat", "gauge", "table", "bargauge")
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "range": not now or panel.kind == "stat",
            "instant": now and panel.kind != "stat",
            "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        }
        for i, query in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _OPTIONS[panel.kind],
        **_table(panel),
    }


def _defaults(panel: Panel) -> JSON:
    steps = panel.steps or ((None, "green"),)
    defaults: JSON = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]},
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 10,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    elif panel.steps:
        defaults["color"] = {"mode": "thresholds"}
    return defaults


def _overrides(panel: Panel) -> list[JSON]:
    found = []
    for column, (name, unit) in panel.columns.items():
        properties: list[JSON] = [{"id": "unit", "value": unit}] if unit else []
        if column in panel.links:
            link = {"title": f"{name} in detail", "url": panel.links[column]}
            properties.append({"id": "links", "value": [link]})
        found.append({"matcher": {"id": "byName", "options": name}, "properties": properties})
    return found


def _table(panel: Panel) -> JSON:
    if panel.kind != "table":
        return {}
    names = {column: name for column, (name, _) in panel.columns.items()}
    return {
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {column: i for i, column in enumerate(names)},
                    "renameByName": names,
                },
            },
        ]
    }


_NEWEST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[Kind, JSON] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "lastNotNull"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _NEWEST, "graphMode": "area", "colorMode": "value", "textMode": "auto"},
    "gauge": {"reduceOptions": _NEWEST, "showThresholdLabels": False, "showThresholdMarkers": True},
    "bargauge": {"reduceOptions": _NEWEST, "displayMode": "basic", "orientation": "horizontal"},
    "table": {"showHeader": True, "cellHeight": "sm", "sortBy": []},
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "yAxis": {"unit": "s"},
        "cellGap": 1,
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": True},
    },
}
