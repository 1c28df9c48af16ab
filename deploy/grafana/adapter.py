"""One adapter, its versions side by side, as one looks at a canary beside what is live."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Mark, Panel, Query, Row, Variable
from deploy.grafana.promql import HERE, LATENCIES, SERVER, VERSION, mean, quantile, rate
from deploy.grafana.shared import INSTANCE, MODEL, STARTS

NAMES = 'hotswap_requests_total{model=~"$model",instance=~"$instance"}'
# The base's own series have no such label: it is offered as (base), and asked for as what is empty.
ADAPTER = Variable(
    "adapter",
    "Adapter",
    f"query_result(group by (adapter, value) (label_replace(label_replace(label_replace({NAMES}, "
    '"value", "$1", "adapter", "(.*)"), "value", "^$", "adapter", ""), "adapter", "(base)", "adapter", "")))',
    many=False,
    regex=r'/adapter="(?<text>[^"]+)",value="(?<value>[^"]+)"/',
)
VERSIONS = Variable(
    "version",
    "Version",
    'label_values(hotswap_requests_total{model=~"$model",adapter=~"$adapter"}, version)',
)
SWAPS = Mark(
    name="Swaps",
    expr=f'hotswap_adapter_change_timestamp_seconds{{{HERE},adapter=~"$adapter"}}',
    title="{{action}}: {{adapter}}@{{version}}",
    text="on {{instance}}",
    colour="purple",
)
NAME = f'{HERE},adapter=~"$adapter"'
FAILED = f'{VERSION},finish_reason=~"error|timeout"'


def _latency(title: str, metric: str, about: str) -> Panel:
    queries = [Query(quantile(q, metric, VERSION, by="version"), f"{name} of {{{{version}}}}") for q, name in LATENCIES]
    return Panel(title, queries, about, unit="s", width=8, height=9)


def _rate(title: str, metric: str, about: str, *, unit: str = "short", stacked: bool = False) -> Panel:
    return Panel(title, [Query(rate(metric, VERSION, by="version"), "{{version}}")], about, unit=unit, stacked=stacked)


LATENCY = Row("How fast", [
    _latency("First token", "time_to_first_token_seconds", "From the arrival of a request."),
    _latency("Between tokens", "inter_token_latency_seconds", "From one output token to the next."),
    _latency("Whole request", "e2e_request_latency_seconds", "From the arrival to the end."),
    _latency("In the queue", "request_queue_time_seconds", "From the arrival until it was first computed."),
    _latency("Time per output token", "request_time_per_output_token_seconds", "The mean of a request."),
    Panel("First tokens", [Query(f"sum by (le) (increase(hotswap_time_to_first_token_seconds_bucket{{{VERSION}}}"
                                 "[$__rate_interval]))", "{{le}}")],
          "How many took how long.", kind="heatmap", height=9),
])  # fmt: skip

TRAFFIC = Row("How much", [
    _rate("Requests", "requests_total", "Sequences that ended, a second.", unit="reqps", stacked=True),
    _rate("Output tokens", "generation_tokens_total", "A second.", stacked=True),
    _rate("Prompt tokens", "prompt_tokens_total", "A second.", stacked=True),
    Panel("Share of the requests", [Query(f"max by (version, role) (hotswap_traffic_share{{{NAME}}})",
                                          "{{version}} {{role}}")],
          "Where the name is split; a shadow's are copies.", unit="percentunit", top=1),
    Panel("Length of answers", [Query(f"{rate('generation_tokens_total', VERSION, by='version')} / "
                                      f"{rate('requests_total', VERSION, by='version')}", "{{version}}")],
          "Mean output tokens of a sequence: versions that differ in it differ in what they say."),
    Panel("Drafted tokens that hold", [Query(f"{rate('accepted_tokens_total', VERSION, by='version')} / "
                                             f"{rate('drafted_tokens_total', VERSION, by='version')}", "{{version}}")],
          "Of those that speculation guessed; none where nothing is drafted.", unit="percentunit", top=1),
])  # fmt: skip

WRONG = Row("How wrong", [
    Panel("Errors", [Query(rate("errors_total", VERSION, by="version, type, status"),
                           "{{version}} {{status}} {{type}}")],
          "Requests that were answered by an error, a second.", unit="reqps", stacked=True),
    Panel("How sequences ended", [Query(rate("requests_total", VERSION, by="version, finish_reason"),
                                        "{{version}} {{finish_reason}}")],
          "A second, by finish reason.", unit="reqps", stacked=True),
    Panel("Sequences that failed", [Query(
        f"{rate('requests_total', FAILED, by='version')} / "
        f"{rate('requests_total', VERSION, by='version')}", "{{version}}")],
        "Share that ended with an error, or took longer than it may.", unit="percentunit", top=1),
])  # fmt: skip

BESIDE = Row("Canaries and shadows", [
    Panel("Requests the live version took over", [Query(rate("canary_fallbacks_total", NAME, by="version"),
                                                        "{{version}}")],
          "Of a canary that could not be loaded, a second.", unit="reqps"),
    Panel("Copies to a shadow", [Query(rate("shadow_requests_total", NAME, by="version, outcome"),
                                       "{{version}} {{outcome}}")],
          "A second, by what became of them.", unit="reqps", stacked=True),
    Panel("Agreement of a shadow", [Query(mean("shadow_agreement_ratio", NAME, by="version"), "{{version}}")],
          "Mean share of equal tokens up to the first difference.", unit="percentunit", top=1),
    Panel("Time of a shadow", [Query(mean("shadow_latency_ratio", NAME, by="version"), "{{version}}")],
          "Its time per token by that of the live version, on the same requests."),
    Panel("Cold starts", [Query(f'rate(hotswap_adapter_cold_start_seconds_count{{{SERVER},stage="prefill"}}'
                                "[$__rate_interval])", "{{instance}}")],
          "Requests to any adapter that waited until it was loaded, a second.", unit="reqps"),
    Panel("Parts of a cold start", [Query(mean("adapter_cold_start_seconds", SERVER, by="stage"), "{{stage}}")],
          "Of requests to any adapter: what their first token waited for, in the mean.", unit="s", stacked=True),
])  # fmt: skip

ADAPTER_DASHBOARD = Dashboard(
    uid="hotswap-adapter",
    title="hotswap: one adapter",
    about="Latencies, tokens and errors of one adapter, its versions side by side.",
    variables=[MODEL, INSTANCE, ADAPTER, VERSIONS],
    marks=[SWAPS, STARTS],
    rows=[LATENCY, TRAFFIC, WRONG, BESIDE],
)
