"""The real command in a real process: start-up, drain, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import openai
import pytest

from server.serving import _signals_stop
from tests.server.command import children, client_of, end, serving, standing_still, starting, url_of
from tests.server.live import wait_until

LONG = {"max_tokens": 500, "ignore_eos": True, "speculation": False, "stream": True}


def test_serve_load_ask_and_stop(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    argv = (
        "--model",
        str(tiny_base),
        "--adapter",
        f"mine={tiny_adapters['lora-r4']}",
        "--served-model-name",
        "org/tiny",
        "--dtype=float32",
    )
    with serving(*argv, HOTSWAP_API_KEY="sk-1", HOTSWAP_ADMIN_KEY="root") as (process, lines):
        text = "\n".join(lines)
        assert "org/tiny (none, float32 on cpu" in text
        assert "mine@1 (lora" in text
        assert "API key needed; adapter uploads with an admin key" in text
        assert "sk-1" not in text
        url = url_of(lines)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-1", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["org/tiny", "mine"]
            assert client.models.retrieve("org/tiny").id == "org/tiny"
            answer = client.chat.completions.create(
                model="mine", messages=[{"role": "user", "content": "hi"}], max_tokens=3
            )
            assert answer.usage is not None
        command = next(line for line in lines if line.startswith("  try")).split(maxsplit=1)[1]
        if shutil.which("curl"):
            tried = subprocess.run(
                ["sh", "-c", f"{command} -s"], env={**os.environ, "KEY": "sk-1"}, capture_output=True, check=True
            )
            assert json.loads(tried.stdout)["model"] == "mine"
        engine = children(process)
        assert engine
        process.send_signal(signal.SIGTERM)
        code, out, err = end(process)
        assert (code, out.strip()) == (0, "stopped")
        entries = [json.loads(line) for line in err.splitlines()]
        request = next(entry for entry in entries if entry.get("path") == "/v1/chat/completions")
        assert (request["adapter"], request["model"], request["status"]) == ("mine@1", "mine", 200)
        assert request["prompt_tokens"] == answer.usage.prompt_tokens
        assert not any(child.is_running() for child in engine)


def test_running_requests_finish_and_new_ones_are_refused(tiny_base: Path) -> None:
    body = {"model": tiny_base.name, "prompt": "x", "n": 8, **LONG}
    with serving("--model", str(tiny_base)) as (process, lines), client_of(lines) as http:
        (engine,) = children(process)
        with http.stream("POST", "/v1/completions", json=body) as response:
            events = response.iter_lines()
            next(events)
            with standing_still(engine):
                process.send_signal(signal.SIGINT)
                wait_until(lambda: http.get("/ready").status_code == 503, "the drain to begin")
                refused = http.post("/v1/completions", json=body | {"stream": False})
                assert refused.status_code == 503
                assert refused.headers["retry-after"]
                assert "shutting down" in refused.json()["error"]["message"]
            rest = [line for line in events if line]
        assert rest[-1] == "data: [DONE]"
        assert sum('"finish_reason":"length"' in line for line in rest) == 8
        code, out, _ = end(process)
    assert code == 0
    assert "8 running" in out


def test_after_the_deadline_what_runs_is_told_so(tiny_base: Path) -> None:
    body = {"model": tiny_base.name, "prompt": "x", "n": 64, **LONG}
    with serving("--model", str(tiny_base), "--drain-seconds", "0.1") as (process, lines), client_of(lines) as http:
        with http.stream("POST", "/v1/completions", json=body) as response:
            events = response.iter_lines()
            next(events)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in events if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert rest[-1] == "data: [DONE]"
        assert end(process)[0] == 0


def test_a_second_signal_ends_what_runs_and_says_so(tiny_base: Path) -> None:
    body = {"model": tiny_base.name, "prompt": "x", "n": 64, **LONG}
    with serving("--model", str(tiny_base)) as (process, lines), client_of(lines) as http:
        (engine,) = children(process)
        with http.stream("POST", "/v1/completions", json=body) as response:
            events = response.iter_lines()
            next(events)
            assert process.stdout is not None
            process.stdout.close()  # as when what it was piped to has ended: it drains all the same
            with standing_still(engine):
                process.send_signal(signal.SIGTERM)
                wait_until(lambda: http.get("/ready").status_code == 503, "the drain to begin")
                process.send_signal(signal.SIGTERM)
            rest = [line for line in events if line]
        assert sum('"finish_reason":"length"' in line for line in rest) < 64
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert rest[-1] == "data: [DONE]"
        assert end(process)[0] == 0
        wait_until(lambda: not engine.is_running(), "the engine to end too")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_base_is_loading(tiny_base: Path, number: signal.Signals) -> None:
    with starting("--model", str(tiny_base)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("loading")
        # a child is there a moment before it has left our group
        wait_until(
            lambda: any(os.getpgid(child.pid) != process.pid for child in children(process)), "the engine process"
        )
        engine = children(process)
        os.killpg(process.pid, number)  # Ctrl-C goes to the whole group
        code, out, err = end(process)
        assert (code, out) == (0, "stopped\n")
        assert not any(child.is_running() for child in engine)
    assert "memory" not in err
    assert "Traceback" not in err
    assert not any(json.loads(line)["level"] in ("warning", "error") for line in err.splitlines()), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_there_is_an_engine(tiny_base: Path, tmp_path: Path, number: signal.Signals) -> None:
    template = tmp_path / "template"
    os.mkfifo(template)
    with starting("--model", str(tiny_base), "--chat-template", str(template)) as process:
        writer = -1

        def is_read() -> bool:
            nonlocal writer
            with contextlib.suppress(OSError):  # nobody reads yet
                writer = os.open(template, os.O_WRONLY | os.O_NONBLOCK)
            return writer >= 0

        wait_until(is_read, "the template to be read")
        process.send_signal(number)
        os.close(writer)  # a signal that came just before it began to read would be seen after that only
        assert end(process) == (0, "stopped\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_library_makes_of_a_signal_is_no_error(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with _signals_stop():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as interrupt:
            raise ValueError("cannot build a schema") from interrupt
    assert signal.getsignal(number) is before
    with pytest.raises(ValueError, match="no signal"), _signals_stop():
        raise ValueError("no signal")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--model", "/nowhere/base"], 1, "there is no base model"),
        (["--model", "{base}", "--adapter", "x=/nowhere"], 1, "--adapter x=/nowhere"),
        (["--model", "{base}", "--adapter", "x={base}"], 1, "--adapter x={base}: "),
        (["--model", "{base}", "--adapter", "a b={lora}"], 1, "cannot name an adapter"),
        (["--model", "{base}", "--device", "nonsense"], 1, "nonsense"),
        (["--model", "{base}", "--chat-template", "/nowhere.jinja"], 1, "--chat-template"),
        (["--model", "{base}", "--host", "0.0.0.0"], 2, "--admin-key"),
        (["--model", "{base}", "--port", "{taken}"], 1, "choose another --port"),
        (["--model", "/nowhere/base", "--data-dir", "{file}"], 1, "cannot keep adapters in {file}: Not a directory"),
        (["--model", "{base}", "--data-dir", "{file}/below"], 1, "choose another --data-dir"),
        (["--model", "{base}", "--data-dir", "/proc/nowhere"], 1, "cannot keep adapters in /proc/nowhere"),
        (["--model", "{base}", "--data-dir", "~nobody-here/x"], 1, "choose another --data-dir"),
        (["--quantize", "int3"], 2, "--quantize must be one of auto, nf4,"),
        (["--quantise", "nf4"], 2, "did you mean --quantize?"),
    ],
)
def test_failing_to_start_is_one_line(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], argv: list[str], code: int, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {
            "base": tiny_base,
            "lora": tiny_adapters["lora-r4"],
            "taken": taken.getsockname()[1],
            "file": tiny_base / "config.json",
        }
        with serving(*(arg.format(**values) for arg in argv), "--log-level", "error") as (process, _):
            returned, _, err = end(process)
    last = [line for line in err.splitlines() if not line.startswith("{")]
    assert returned == code, err
    assert len(last) == 1, err
    assert words.format(**values) in last[0]


def test_help_is_instant_and_whole() -> None:
    script = (
        "import sys\nfrom server.cli import serve\n"
        "try:\n    serve(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'fastapi', 'transformers', 'uvicorn'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--kv-cache-gb" in done.stdout


def test_the_api_process_imports_no_torch(tiny_base: Path) -> None:
    script = (
        "import sys, pathlib\nimport server.serving\nfrom server.text.tokenizer import TextProcessor\n"
        f"TextProcessor.load(pathlib.Path({str(tiny_base)!r}))\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_an_earlier_server_served_is_served(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    argv = ("--model", str(tiny_base), "--data-dir", str(tmp_path))
    for options, number in (("--adapter", f"mine={tiny_adapters['lora-r4']}"), signal.SIGKILL), ((), signal.SIGTERM):
        with serving(*argv, *options) as (process, lines):
            banner = {line.split()[0]: line.split()[1] for line in lines if line.startswith("  ")}
            assert banner["adapters"] == "mine@1"
            assert banner["catalog"].endswith("catalog.db")
            process.send_signal(number)
            assert end(process)[0] == (0 if number is signal.SIGTERM else -signal.SIGKILL)
