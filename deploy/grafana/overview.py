"""The page to look at first: whether all is well, and who asks for what."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query, Row
from deploy.grafana.promql import HERE, SERVER, mean, named, quantile, rate, total
from deploy.grafana.shared import ADAPTER_PAGE, INSTANCE, MODEL, STARTS, SWAPS

TTFT, BETWEEN, E2E = "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"
FAULTS = f'{HERE},status=~"5.."'
BAD_SHARE = ((None, "green"), (0.01, "orange"), (0.05, "red"))
NEARLY_FULL = ((None, "green"), (0.8, "orange"), (0.95, "red"))


def _share(part: str, whole: str) -> str:
    """0 where there is none of ``part`` yet."""
    return f"({part} or vector(0)) / {whole}"


def _number(title: str, expr: str, about: str, unit: str = "short", steps: object = ()) -> Panel:
    assert isinstance(steps, tuple)
    return Panel(title, [Query(expr)], about, kind="stat", unit=unit, width=4, height=4, steps=steps)


NOW = Row("Now", [
    _number("Requests", rate("requests_total"), "Sequences that ended, a second.", "reqps"),
    _number("Output", rate("generation_tokens_total"), "Output tokens of ended sequences, a second.", "short"),
    _number("First token, p95", quantile(0.95, TTFT), "From the arrival of a request.", "s"),
    _number("Between tokens, p95", quantile(0.95, BETWEEN), "Of one sequence.", "s"),
    _number("Answers that are our fault", _share(rate("http_responses_total", FAULTS), rate("http_responses_total")),
            "HTTP status 5xx, of all.", "percentunit", BAD_SHARE),
    _number("Alerts", 'count(ALERTS{alertname=~"Hotswap.*",alertstate="firing"}) or vector(0)',
            "Rules of deploy/prometheus/alerts.yaml that fire.", steps=((None, "green"), (1, "red"))),
    _number("Running", total("requests_running"), "Sequences being computed."),
    _number("Waiting", total("requests_waiting"), "Sequences that wait to be computed."),
    _number("KV cache", f"max(hotswap_kv_cache_usage_ratio{{{HERE}}})", "Used part of the fullest.", "percentunit",
            NEARLY_FULL),
    _number("Adapters in memory", total("adapters_resident", f'{HERE},tier="device"'), "Versions, on all servers."),
    _number("Free disk", f"min(hotswap_disk_free_bytes{{{HERE}}} / hotswap_disk_size_bytes{{{HERE}}})",
            "Of the file system of --data-dir, where it is least.", "percentunit",
            ((None, "red"), (0.1, "orange"), (0.2, "green"))),
    _number("Servers", f"count(hotswap_build_info{{{SERVER}}})", "Servers that answer Prometheus."),
])  # fmt: skip

BY_ADAPTER = Row("By adapter", [
    Panel("Requests", [Query(named(f"topk(10, {rate('requests_total', by='adapter')})"), "{{adapter}}")],
          "Sequences that ended, a second; the ten busiest.", unit="reqps", stacked=True),
    Panel("Output tokens", [Query(named(f"topk(10, {rate('generation_tokens_total', by='adapter')})"), "{{adapter}}")],
          "A second; the ten busiest.", stacked=True),
    Panel("First token, p95", [Query(named(f"topk(10, {quantile(0.95, TTFT, by='adapter')})"), "{{adapter}}")],
          "The ten slowest.", unit="s"),
    Panel("Whole request, p95", [Query(named(f"topk(10, {quantile(0.95, E2E, by='adapter')})"), "{{adapter}}")],
          "From the arrival to the end; the ten slowest.", unit="s"),
    Panel("Errors", [Query(named(rate("errors_total", by="adapter, type, status")), "{{adapter}} {{status}} {{type}}")],
          "Requests that were answered by an error, a second: theirs (4xx) and ours (5xx).", unit="reqps",
          stacked=True),
    Panel("How sequences ended", [Query(rate("requests_total", by="finish_reason"), "{{finish_reason}}")],
          "A second, by finish reason.", unit="reqps", stacked=True),
    Panel("All versions", [
        Query(named(rate("requests_total", by="adapter, version"))),
        Query(named(rate("generation_tokens_total", by="adapter, version"))),
        Query(named(quantile(0.95, TTFT, by="adapter, version"))),
        Query(named(mean(BETWEEN, by="adapter, version"))),
        Query(named(quantile(0.95, E2E, by="adapter, version"))),
        Query(named(rate("errors_total", FAULTS, by="adapter, version"))),
        Query(f"max by (adapter, version) (hotswap_traffic_share{{{HERE}}})"),
    ], "Of the busiest versions (--metrics-adapters); other is the rest. A share is told of names that are split.",
        kind="table", width=24, height=10, links={"adapter": ADAPTER_PAGE}, columns={
            "adapter": ("Adapter", ""),
            "version": ("Version", ""),
            "Value #A": ("Requests", "reqps"),
            "Value #B": ("Output tokens/s", "short"),
            "Value #C": ("First token, p95", "s"),
            "Value #D": ("Between tokens, mean", "s"),
            "Value #E": ("Whole request, p95", "s"),
            "Value #F": ("Faults", "reqps"),
            "Value #G": ("Share", "percentunit"),
        }),
])  # fmt: skip

CATALOG = Row("Adapters and answers", [
    Panel("Versions", [Query(f"max by (state) (hotswap_adapter_versions{{{HERE}}})", "{{state}}")],
          "In the catalog, by state.", stacked=True),
    Panel("Swaps", [Query(f"sum by (action) (increase(hotswap_adapter_swaps_total{{{SERVER}}}[$__rate_interval]))",
                          "{{action}}")],
          "Changes of what names serve.", stacked=True),
    Panel("Shares", [Query(f"max by (adapter, version, role) (hotswap_traffic_share{{{HERE}}})",
                           "{{adapter}}@{{version}} {{role}}")],
          "Of the requests to a name that is split; a shadow's are copies.", unit="percentunit", top=1),
    Panel("HTTP answers", [Query(rate("http_responses_total", by="status"), "{{status}}")],
          "A second, by status; 0: the client left before.", unit="reqps", stacked=True),
    Panel("Routes", [Query(f"topk(10, {rate('http_responses_total', by='method, route')})", "{{method}} {{route}}")],
          "The ten that are asked most.", unit="reqps"),
    Panel("Packages refused", [Query(f"{rate('adapter_load_errors_total', SERVER, by='code')} or vector(0)",
                                     "{{code}}")],
          "Uploads that were not taken, a second, by reason.", unit="ops"),
])  # fmt: skip

OVERVIEW = Dashboard(
    uid="hotswap-overview",
    title="hotswap: overview",
    about="Whether all is well, and who asks for what.",
    variables=[MODEL, INSTANCE],
    marks=[SWAPS, STARTS],
    rows=[NOW, BY_ADAPTER, CATALOG],
)
