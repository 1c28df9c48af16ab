"""The engine: what a step is made of, what is in memory, how adapters come and go."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query, Row
from deploy.grafana.promql import HERE, LATENCIES, SERVER, mean, quantile, rate
from deploy.grafana.shared import ENGINES, INSTANCE, MODEL, STARTS, SWAPS


def _gauge(metric: str, by: str = "instance", where: str = HERE) -> str:
    return f"sum by ({by}) (hotswap_{metric}{{{where}}})"


STEPS = Row("Steps", [
    Panel("Sequences", [Query(_gauge("requests_running"), "running on {{instance}}"),
                        Query(_gauge("requests_waiting"), "waiting on {{instance}}"),
                        Query(_gauge("requests_limit"), "limit of {{instance}}")],
          "More than the limit are refused with 429."),
    Panel("Sequences in a step", [Query(quantile(q, "batch_requests"), name) for q, name in LATENCIES],
          "How many are computed together."),
    Panel("Tokens in a step", [Query(quantile(q, "batch_tokens"), name) for q, name in LATENCIES],
          "Of prompts and outputs, those of drafts included."),
    Panel("Time of a step", [Query(quantile(q, "engine_step_seconds"), name) for q, name in LATENCIES],
          "About what lies between two tokens of a stream.", unit="s"),
    Panel("Parts of a step", [Query(f"{rate('engine_step_part_seconds_total', by='part')} / ignoring (part) group_left "
                                    f"{rate('engine_step_seconds_count')}", "{{part}}")],
          "Mean time: what is computed is chosen (schedule), the model (forward), choosing tokens (sample), the rest. "
          "On a GPU much of the model's time shows as sample, which waits for it.", unit="s", stacked=True),
    Panel("Busy", [Query(rate("engine_step_seconds_sum", by="instance"), "{{instance}}")],
          "Share of the time that steps take; 1: the engine never rests.", unit="percentunit", top=1),
    Panel("Tokens", [Query(rate("prompt_tokens_total"), "prompt"), Query(rate("generation_tokens_total"), "output")],
          "Of ended sequences, a second."),
    Panel("Drafted tokens that hold", [Query(f"{rate('accepted_tokens_total')} / {rate('drafted_tokens_total')}",
                                             "accepted")],
          "Of those that speculation guessed; none where nothing is drafted.", unit="percentunit", top=1),
    Panel("In the queue", [Query(quantile(q, "request_queue_time_seconds"), name) for q, name in LATENCIES],
          "From the arrival of a request until it was first computed.", unit="s"),
])  # fmt: skip

CACHE = Row("KV cache", [
    Panel("Used", [Query(f"max by (instance) (hotswap_kv_cache_usage_ratio{{{HERE}}})", "{{instance}}")],
          "By sequences and resident prefixes; what is kept for prompts to come counts as free.", unit="percentunit",
          top=1, steps=((None, "green"), (0.95, "red"))),
    Panel("Prompt tokens found", [Query(f"{rate('prefix_cache_hits_total')} / {rate('prefix_cache_queries_total')}",
                                        "hits")],
          "Share of prompt tokens whose keys and values were there already.", unit="percentunit", top=1),
    Panel("Preemptions", [Query(rate("preemptions_total", by="instance"), "{{instance}}")],
          "Sequences put back for lack of room, a second: they are computed again later.", unit="ops"),
])  # fmt: skip

MEMORY = Row("Memory and machine", [
    Panel("Base and KV cache", [Query(_gauge("base_bytes", "model"), "weights of {{model}}"),
                                Query(_gauge("kv_cache_bytes", "model"), "KV cache of {{model}}")],
          "Weights as they are kept, and what the cache may take.", unit="bytes", stacked=True),
    Panel("Adapters", [Query(_gauge("adapter_bytes", "tier"), "{{tier}}"),
                       Query(_gauge("adapter_limit_bytes", "tier"), "limit of {{tier}}")],
          "By tier: device (where the base is), host, store (on disk).", unit="bytes"),
    Panel("Adapter versions", [Query(_gauge("adapters_resident", "tier"), "{{tier}}")], "By tier."),
    Panel("Processes", [Query(f"process_resident_memory_bytes{{{SERVER}}} and on (instance) hotswap_build_info",
                              "server {{instance}}"),
                        Query(f"hotswap_engine_process_resident_memory_bytes{{{SERVER}}}", "engine {{instance}}")],
          "Resident memory.", unit="bytes"),
    Panel("Processors", [Query(f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval]) and on (instance) "
                               "hotswap_build_info", "server {{instance}}"),
                         Query(f"rate(hotswap_engine_process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])",
                               "engine {{instance}}")],
          "Cores in use."),
    Panel("Disk", [Query(_gauge("disk_free_bytes"), "free on {{instance}}"),
                   Query(_gauge("disk_size_bytes"), "size on {{instance}}")],
          "The file system of --data-dir.", unit="bytes"),
])  # fmt: skip

SWAPS_ROW = Row("Adapters coming and going", [
    Panel("Stages of a load", [Query(mean("adapter_load_seconds", SERVER, by="stage"), "{{stage}}")],
          "Mean time: waiting for its turn (queue), reading, validating, copying, trying it against its record.",
          unit="s", stacked=True),
    Panel("Stages of a load, p95", [Query(quantile(0.95, "adapter_load_seconds", SERVER, by="stage"), "{{stage}}")],
          "The slow ones.", unit="s"),
    Panel("Loads", [Query(rate("adapter_load_seconds_count", f'{SERVER},stage="copy"', by="instance"),
                          "all on {{instance}}"),
                    Query(rate("adapter_cold_loads_total", SERVER, by="instance"), "from the store, {{instance}}")],
          "A second.", unit="ops"),
    Panel("Swaps", [Query(f"sum by (action) (increase(hotswap_adapter_swaps_total{{{SERVER}}}[$__rate_interval]))",
                          "{{action}}")],
          "Changes of what names serve.", stacked=True),
    Panel("Evictions", [Query(rate("adapter_evictions_total", SERVER, by="reason"), "{{reason}}")],
          "Versions that left memory, a second: for others (room), or idle too long (ttl).", unit="ops", stacked=True),
    Panel("First token of a cold start", [Query(mean("adapter_cold_start_seconds", SERVER, by="stage"), "{{stage}}")],
          "Parts of it, in the mean.", unit="s", stacked=True),
])  # fmt: skip

RESTARTS = Row("Restarts", [
    Panel("Engine restarts", [Query(f"increase(hotswap_engine_restarts_total{{{HERE}}}[$__rate_interval])",
                                    "{{instance}}")],
          "The process was lost and started again."),
    Panel("Loss to service", [Query(mean("engine_restart_seconds", by="stage"), "{{stage}}")],
          "Mean time from the loss of an engine to the next one's service, and to its first token.", unit="s"),
    Panel("Sequences computed again", [Query(f"increase(hotswap_resumed_sequences_total{{{HERE}}}[$__rate_interval])",
                                             "{{instance}}")],
          "After a restart; their clients see the delay alone."),
])  # fmt: skip

ENGINE = Dashboard(
    uid="hotswap-engine",
    title="hotswap: engine",
    about="What a step is made of, what is in memory, how adapters come and go.",
    variables=[MODEL, INSTANCE],
    marks=[SWAPS, STARTS, ENGINES],
    rows=[STEPS, CACHE, MEMORY, SWAPS_ROW, RESTARTS],
)
