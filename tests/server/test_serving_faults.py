"""The real command while its engine hangs, and while somebody sets the clock."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.command import children, client_of, end, serving, url_of
from tests.server.live import wait_until

LONG = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "speculation": False, "stream": True}


def events(response: httpx.Response) -> Iterator[Any]:
    """The objects of a stream up to its ``[DONE]``, which must come."""
    for line in response.iter_lines():
        if line == "data: [DONE]":
            return
        if line and not line.startswith(":"):  # a comment that the answer takes its time
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream was cut off")


@pytest.fixture(scope="module")
def recovering(
    tiny_base: Path, tiny_adapters: Mapping[str, Path]
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server with two adapters, and room for four sequences at once."""
    adapters = [word for name in ("lora-r8", "prefix-5") for word in ("--adapter", f"{name}={tiny_adapters[name]}")]
    argv = ("--model", str(tiny_base), "--dtype", "float32", "--max-num-seqs", "4", "--engine-timeout", "4", *adapters)
    with serving(*argv) as (process, lines), client_of(lines) as http:
        yield process, http


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_lost_engine_is_replaced_and_everyone_has_one_answer(
    recovering: tuple[subprocess.Popen[str], httpx.Client], tiny_base: Path, number: int
) -> None:
    process, http = recovering
    whole: dict[str, Any] = LONG | {"stream": False}
    asks = [
        whole | {"model": "lora-r8", "n": 2, "seed": 3, "temperature": 0.8},
        whole | {"model": "prefix-5", "temperature": 0},
        whole | {"model": tiny_base.name, "prompt": ["a", "b"], "temperature": 0},
        LONG | {"model": "prefix-5", "temperature": 0},
    ]

    def ask(body: dict[str, Any]) -> list[str]:
        if not body["stream"]:
            return [choice["text"] for choice in http.post("/v1/completions", json=body).json()["choices"]]
        with http.stream("POST", "/v1/completions", json=body) as response:
            return ["".join(chunk["choices"][0]["text"] for chunk in events(response))]

    expected = [ask(body) for body in asks]
    restarts = metric(http, "hotswap_engine_restarts_total")
    (engine,) = children(process)
    with ThreadPoolExecutor(8) as pool, http.stream("POST", "/v1/completions", json=asks[-1]) as response:
        seen = events(response)
        next(seen)
        engine.suspend()  # what comes now is accepted
        answers = [pool.submit(ask, body) for body in asks[:-1]]
        if number == signal.SIGKILL:
            wait_until(lambda: waiting(engine, http) >= 2, "more than the engine takes at once")
        answers.append(pool.submit(ask, asks[-1]))  # a stream that has begun would end with the engine
        if number == signal.SIGKILL:
            wait_until(lambda: waiting(engine, http) >= 3, "the stream to wait too")
            engine.kill()
        *texts, last = seen
        assert last["error"]["code"] == "engine_unavailable"
        assert "can be sent again" in last["error"]["message"]
        assert not any("error" in chunk for chunk in texts)
        for path in ("/ready", "/health"):
            refused = http.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable"), path
            assert refused.headers["retry-after"]
        assert [answer.result() for answer in answers] == expected
    assert http.get("/ready").status_code == http.get("/health").status_code == 200
    assert not psutil.pid_exists(engine.pid)
    assert metric(http, "hotswap_engine_restarts_total") == restarts + 1
    for stage in ("serving", "first_token"):
        assert metric(http, "hotswap_engine_restart_seconds_count", stage=stage) == restarts + 1
    wait_until(lambda: metric(http, "hotswap_requests_running") == 0, "the end of all")


def waiting(engine: psutil.Process, http: httpx.Client) -> float:
    """How many wait by now; the engine gets on for a moment, in which none of its answers ends."""
    engine.resume()
    time.sleep(0.01)
    engine.suspend()
    return metric(http, "hotswap_requests_waiting")


def metric(http: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


# Every clock of the process and its children reads the file: whoever raises here ends the server itself.
JUMPING_CLOCK = """
import time
from pathlib import Path

real = time.time

def jumped():
    return real() + float(Path({offset!r}).read_text())

time.time = jumped
time.time_ns = lambda: int(jumped() * 1e9)
"""


def set_clock(offset: Path, seconds: int) -> None:
    """In one piece: a file that is being written is empty for a moment."""
    written = offset.with_suffix(".new")
    written.write_text(str(seconds))
    written.replace(offset)


def test_setting_the_clock_disturbs_nothing(tiny_base: Path, tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    set_clock(offset, 0)
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK.format(offset=str(offset)))
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    argv = ("--model", str(tiny_base), "--engine-timeout", "5", "--step-timeout", "20")
    with serving(*argv, **environ) as (process, lines), client_of(lines) as http:
        (engine,) = children(process)
        body = LONG | {"model": tiny_base.name}
        with http.stream("POST", "/v1/completions", json=body) as response:
            seen = events(response)
            created = next(seen)["created"]
            for jump in (86_400, -86_400, 0):
                set_clock(offset, jump)
                for _ in range(50):
                    next(seen)
                assert http.get("/ready").status_code == 200
            rest = list(seen)
        assert rest[-1]["choices"][0]["finish_reason"] == "length"
        set_clock(offset, 86_400)
        later = http.post("/v1/completions", json=body | {"stream": False, "max_tokens": 2}).json()["created"]
        assert later >= created + 86_000, "the clock was not set: the test shows nothing"
        assert children(process) == [engine]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
def test_descriptors_run_out_and_come_back(tiny_base: Path) -> None:
    ask = {"model": tiny_base.name, "prompt": "x", "max_tokens": 2}
    with ExitStack() as stack:
        process, lines = stack.enter_context(serving("--model", str(tiny_base)))
        http = stack.enter_context(client_of(lines))
        assert http.post("/v1/completions", json=ask).status_code == 200
        least = max(map(int, os.listdir(f"/proc/{process.pid}/fd"))) + 1
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (least + 20, least + 20))
        host, port = url_of(lines).removeprefix("http://").split(":")
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(30)]
        wait_until(lambda: psutil.Process(process.pid).num_fds() >= least + 20, "the last descriptor to go")
        assert http.post("/v1/completions", json=ask).status_code == 200, "who is connected is served"
        with client_of(lines) as other:
            assert other.post("/v1/completions", json=ask).status_code == 200, "who says nothing gives way"
        for connection in silent:
            connection.close()
        with client_of(lines) as other:
            assert other.post("/v1/completions", json=ask).status_code == 200
        process.send_signal(signal.SIGTERM)
        code, _, err = end(process)
    assert code == 0
    told = [line for line in map(json.loads, err.splitlines()) if "no file descriptor" in line["message"]]
    assert 1 <= len(told) <= 3
    counts = [int(line["message"].split(" not accepted")[0].split()[-1]) for line in told]
    assert sum(counts) < 30, "asyncio tries again once a second"


POISON = """
import os, signal, sys

def killed_by(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].endswith("adapter_model.safetensors"):
        if os.path.exists(os.path.join(os.path.dirname(args[0]), ".poison")):
            os.kill(os.getpid(), signal.SIGKILL)

if "server.engine.ipc.process" in sys.orig_argv:
    sys.addaudithook(killed_by)
"""


@pytest.mark.slow
def test_an_adapter_that_ends_the_engine_is_left_out_and_the_others_served(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    names = {"sound": "lora-r8", "bad": "lora-r4"}
    adapters = [word for name in names for word in ("--adapter", f"{name}={tiny_adapters[names[name]]}")]
    argv = ("--model", str(tiny_base), "--dtype", "float32", "--data-dir", str(tmp_path / "data"), *adapters)
    with serving(*argv, **environ) as (process, lines), client_of(lines) as http:
        ask = {"prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        before = {name: http.post("/v1/completions", json=ask | {"model": name}).text for name in names}
        texts = {name: json.loads(body)["choices"][0]["text"] for name, body in before.items()}
        for package in (tmp_path / "data" / "packages").iterdir():
            if b'"r": 4' in (package / "adapter_config.json").read_bytes():
                (package / ".poison").touch()
        (engine,) = children(process)
        engine.kill()
        wait_until(lambda: http.get("/ready").status_code == 503, "the death to be noticed")
        for count in ("1.0", "2.0"):  # lives that end with it
            restarts = f'hotswap_engine_restarts_total{{model="{tiny_base.name}"}} {count}'
            wait_until(lambda line=restarts: line in http.get("/metrics").text, "the next life")  # type: ignore[misc]
        failed = f'hotswap_adapter_versions{{model="{tiny_base.name}",state="failed"}} 1.0'
        wait_until(lambda: failed in http.get("/metrics").text, "the bad one to be left out")
        wait_until(lambda: http.get("/ready").status_code == 200, "the engine to serve the others")
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [tiny_base.name, "sound"]
        again = http.post("/v1/completions", json=ask | {"model": "sound"}).json()
        assert again["choices"][0]["text"] == texts["sound"]
        refused = http.post("/v1/completions", json=ask | {"model": "bad"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_failed")
        assert "the engine ended while it was being loaded" in refused.json()["error"]["message"]
        for poison in (tmp_path / "data" / "packages").glob("*/.poison"):
            poison.unlink()
        assert http.patch("/v1/adapters/bad", json={"version": 1}).status_code == 200
        mended = http.post("/v1/completions", json=ask | {"model": "bad"}).json()
        assert mended["choices"][0]["text"] == texts["bad"]
