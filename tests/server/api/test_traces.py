"""Spans of real requests, received over OTLP; trace context in and out; what the log says of timings."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from adapters.package.archive import pack
from tests.server.live import Live, live_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"
BODY = {"model": "sql", "prompt": "abc", "max_tokens": 4, "temperature": 0, "ignore_eos": True}


class Receiver:
    """A collector: every span that came, as plain fields, by trace."""

    def __init__(self) -> None:
        spans: list[dict[str, Any]] = []
        came = threading.Condition()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                with came:
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        service = _plain(resource.resource.attributes)
                        for scope in resource.scope_spans:
                            spans.extend(_span(span, service) for span in scope.spans)
                    came.notify_all()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._spans, self._came = spans, came
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def of(self, trace: str) -> list[dict[str, Any]]:
        """The spans of a trace, the request's first."""
        with self._came:
            assert self._came.wait_for(lambda: any(_is_whole(span, trace) for span in self._spans), 60)
            return sorted((s for s in self._spans if s["trace"] == trace), key=lambda s: (not s["server"], s["start"]))

    def traces(self) -> set[str]:
        with self._came:
            return {span["trace"] for span in self._spans}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _is_whole(span: Mapping[str, Any], trace: str) -> bool:
    return bool(span["server"]) and span["trace"] == trace


def _plain(attributes: Any) -> dict[str, Any]:
    def value(of: Any) -> Any:
        kind = of.WhichOneof("value")
        return [value(one) for one in of.array_value.values] if kind == "array_value" else getattr(of, kind)

    return {one.key: value(one.value) for one in attributes}


def _span(span: Any, service: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "server": span.kind == 2,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "status": span.status.code,
        "service": service["service.name"],
        **_plain(span.attributes),
    }


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        adapters = (("sql", str(tiny_adapters["lora-r8"])),)
        data = tmp_path_factory.mktemp("data")
        with live_server(tiny_base, data, adapters=adapters, otlp_traces_endpoint=receiver.url) as live:
            yield live


def test_a_request_is_a_span_with_its_parts_inside(traced: Live, receiver: Receiver) -> None:
    with traced.http(traceparent=GIVEN) as http:
        answer = http.post("/v1/completions", json=BODY | {"n": 2})
    version, trace, own, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    whole, *parts = receiver.of(TRACE)
    assert whole["id"] == own
    assert whole["parent"] == PARENT
    assert whole["service"] == "hotswap"
    assert whole["name"] == "text_completion sql"
    wanted = {
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "sql",
        "gen_ai.request.max_tokens": 4,
        "hotswap.adapter": "sql@1",
        "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ["length", "length"],
        "hotswap.request.id": answer.headers["x-request-id"],
    }
    assert {name: whole[name] for name in wanted} == wanted
    assert whole["status"] == 0
    assert [part["name"] for part in parts].count("prepare") == 1
    for index in (0, 1):
        queue, prefill, decode = (part for part in parts if part.get("hotswap.sequence") == index)
        assert [queue["name"], prefill["name"], decode["name"]] == ["queue", "prefill", "decode"]
        assert queue["end"] == prefill["start"] < prefill["end"] == decode["start"] < decode["end"]
        assert decode["gen_ai.usage.output_tokens"] == 4
    for part in parts:
        assert part["parent"] == own
        assert whole["start"] - 10_000_000 <= part["start"] <= part["end"] <= whole["end"] + 10_000_000  # clocks of ns


def test_a_stream_and_what_is_no_inference(traced: Live, receiver: Receiver) -> None:
    trace = "1" * 32
    with traced.http(traceparent=f"00-{trace}-{PARENT}-01") as http:
        messages = [{"role": "user", "content": "a"}]
        body = {"model": traced.context.base_name, "messages": messages, "max_tokens": 3, "stream": True}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    whole, *parts = receiver.of(trace)
    assert whole["name"] == f"chat {traced.context.base_name}"
    assert "hotswap.adapter" not in whole
    assert whole["gen_ai.latency.time_to_first_token"] > 0
    assert {"prepare", "queue", "prefill"} <= {part["name"] for part in parts}
    with traced.http() as http:
        answer = http.get("/v1/models")
    (whole,) = receiver.of(answer.headers["traceparent"].split("-")[1])
    assert whole["name"] == "GET /v1/models"
    assert whole["parent"] == ""


def test_errors(traced: Live, receiver: Receiver) -> None:
    trace = "2" * 32
    with traced.http(traceparent=f"00-{trace}-{PARENT}-01") as http:
        assert http.post("/v1/completions", json=BODY | {"model": "nobody"}).status_code == 404
    (whole,) = receiver.of(trace)
    assert whole["error.type"] == "model_not_found"
    assert whole["status"] == 0, "a mistake of the client's is none of the server's"


def test_what_is_not_sampled_is_not_sent(traced: Live, receiver: Receiver) -> None:
    with traced.http(traceparent=f"00-{'3' * 32}-{PARENT}-00") as http:
        assert http.post("/v1/completions", json=BODY).headers["traceparent"].endswith("-00")
    last = "4" * 32
    with traced.http(traceparent=f"00-{last}-{PARENT}-01") as http:
        http.post("/v1/completions", json=BODY)
    receiver.of(last)
    assert "3" * 32 not in receiver.traces()


def test_an_adapter_that_is_loaded_for_a_request_is_a_part_of_it(
    tiny_base: Path,
    tiny_adapters: Mapping[str, Path],
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with live_server(tiny_base, tmp_path, adapters=(("sql", str(tiny_adapters["lora-r8"])),)):
        pass  # which the next server finds in its catalog
    settings: dict[str, Any] = {"otlp_traces_endpoint": receiver.url, "load_adapters": "lazy"}
    trace = "5" * 32
    with live_server(tiny_base, tmp_path, **settings) as live, live.http(traceparent=f"00-{trace}-{PARENT}-01") as http:
        assert http.post("/v1/completions", json=BODY).status_code == 200
    _, *parts = receiver.of(trace)  # what was left was sent when the server ended
    load = next(part for part in parts if part["name"] == "load adapter")
    stages = [value for name, value in load.items() if name.startswith("hotswap.load.")]
    assert sum(stages) == pytest.approx((load["end"] - load["start"]) / 1e9, abs=1e-3)


def test_a_change_of_adapters_is_a_span_with_its_parts_inside(
    traced: Live, receiver: Receiver, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    """An upload that replaces a version, the way back, and a package that is none."""
    pack(tiny_adapters["ia3"], archive := tmp_path / "ia3.tar")
    trace = "6" * 32
    with traced.http(traceparent=f"00-{trace}-{PARENT}-01") as http:
        answer = http.put("/v1/adapters/sql", files={"file": archive.read_bytes()})
    assert answer.status_code == 201, answer.text
    whole, *parts = receiver.of(trace)
    assert (whole["name"], whole["parent"]) == ("PUT /v1/adapters/{name}", PARENT)
    assert [part["name"] for part in parts] == ["fetch", "verify", "wait", "load adapter", "commit", "swap"]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        assert part["parent"] == whole["id"]
        assert part["start"] < part["end"] <= (after["start"] if after else whole["end"] + 10_000_000)
    load = parts[3]
    assert load["hotswap.adapter"] == "sql@2"
    stages = {name for name in load if name.startswith("hotswap.load.")}
    assert {"hotswap.load.read_seconds", "hotswap.load.try_seconds"} <= stages
    assert sum(load[name] for name in stages) <= (load["end"] - load["start"]) / 1e9

    trace = "7" * 32
    with traced.http(traceparent=f"00-{trace}-{PARENT}-01") as http:
        assert http.post("/v1/adapters/sql/rollback").json()["version"] == 1
    whole, *parts = receiver.of(trace)
    assert whole["name"] == "POST /v1/adapters/{name}/rollback"
    assert [part["name"] for part in parts if part["name"] != "load adapter"] == ["wait", "commit", "swap"]

    trace = "8" * 32
    with traced.http(traceparent=f"00-{trace}-{PARENT}-01") as http:
        assert http.put("/v1/adapters/other", files={"file": b"no archive"}).status_code == 400
    _, fetch = receiver.of(trace)
    assert (fetch["name"], fetch["error.type"]) == ("fetch", "PackageError")


def test_a_collector_that_is_away_disturbs_nobody(tiny_base: Path, tmp_path: Path) -> None:
    with live_server(tiny_base, tmp_path, otlp_traces_endpoint="http://127.0.0.1:9/v1/traces") as live:
        assert live.post("/v1/completions", BODY | {"model": live.context.base_name}).status_code == 200


def told_of(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    """The lines of requests, by trace."""
    lines: list[dict[str, Any]] = [getattr(record, "fields", {}) for record in caplog.records]
    return {line["trace_id"]: line for line in lines if "trace_id" in line}


def test_without_a_collector_a_trace_is_passed_on_and_logged(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.requests")
    with server.http(traceparent=GIVEN) as http:
        answer = http.post("/v1/completions", json=BODY | {"model": "lora"})
    version, trace, own, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert own != PARENT
    server.wait(lambda: TRACE in told_of(caplog), "the request's line")  # which comes after the answer
    line = told_of(caplog)[TRACE]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["completion_tokens"] == 4
    assert 0 <= line["queue_seconds"] < line["first_token_seconds"] < line["seconds"]
    assert line["token_seconds"] > 0
    assert line["finish_reasons"] == ["length"]


@pytest.mark.parametrize("given", ["", "00-0-1-01", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", "x" * 200])
def test_what_is_no_trace_context_is_not_passed_on(server: Live, given: str) -> None:
    with server.http(traceparent=given) as http:
        assert "traceparent" not in http.get("/v1/models").headers
