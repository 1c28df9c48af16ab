"""Choices and marks that all dashboards have."""

from __future__ import annotations

from deploy.grafana.panels import Mark, Variable
from deploy.grafana.promql import HERE

MODEL = Variable("model", "Base", "label_values(hotswap_base_info, model)")
INSTANCE = Variable("instance", "Server", 'label_values(hotswap_base_info{model=~"$model"}, instance)')
SWAPS = Mark(
    name="Swaps",
    expr=f"hotswap_adapter_change_timestamp_seconds{{{HERE}}}",
    title="{{action}}: {{adapter}}@{{version}}",
    text="on {{instance}}",
    colour="purple",
)
STARTS = Mark(
    name="Starts",
    expr='process_start_time_seconds{instance=~"$instance"} * on (instance, job) hotswap_build_info',
    title="server started",
    text="hotswap {{version}} on {{instance}}",
    colour="blue",
)
ENGINES = Mark(
    name="Engines",
    expr='hotswap_engine_process_start_time_seconds{instance=~"$instance"}',
    title="engine started",
    text="on {{instance}}",
    colour="red",
)
ADAPTER_PAGE = "/d/hotswap-adapter?var-adapter=${__data.fields.Adapter}&${datasource:queryparam}&${__url_time_range}"
