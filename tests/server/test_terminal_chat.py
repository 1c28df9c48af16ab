"""The terminal client against a real server, and against servers that misbehave."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server.terminal_chat.cli import main
from server.terminal_chat.client import harmless
from tests.server.live import Live, live_server


@pytest.fixture(scope="module")
def live(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    adapters = (("mine", str(tiny_adapters["lora-r4"])),)
    with live_server(tiny_base, tmp_path_factory.mktemp("data"), adapters=adapters) as made:
        yield made


def run(live: Live, monkeypatch: pytest.MonkeyPatch, text: str, *argv: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["--url", live.url, "--max-tokens", "6", "--temperature", "0", *argv])


def whole_answer(live: Live, model: str, *messages: tuple[str, str]) -> str:
    body = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "max_tokens": 6,
        "temperature": 0,
    }
    text: str = live.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    return text


def test_a_pipe_gets_answers_only(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = live.context.base_name
    assert run(live, monkeypatch, "hello\nagain\n") == 0
    first = whole_answer(live, base, ("user", "hello"))
    second = whole_answer(live, base, ("user", "hello"), ("assistant", first), ("user", "again"))
    captured = capsys.readouterr()
    assert captured.out == f"{first}\n{second}\n"
    assert captured.err == ""


def test_commands(live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = live.context.base_name
    script = "/models\n/use mine\n/system Be kind.\nhello\n/clear\nhello\n/exit\nnever\n"
    assert run(live, monkeypatch, script) == 0
    answer = whole_answer(live, "mine", ("system", "Be kind."), ("user", "hello"))
    assert capsys.readouterr().out == f"* {base}\n  mine\n{answer}\n{answer}\n"


def test_the_model_may_be_given(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(live, monkeypatch, "hello", "--adapter", "mine@1", "--system", "s") == 0
    assert capsys.readouterr().out == whole_answer(live, "mine", ("system", "s"), ("user", "hello")) + "\n"


def test_several_answer_side_by_side(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = live.context.base_name
    script = f"hello\nagain\n/use mine\n/models\nmore\n/use {base} mine@1\nhello\n/use mine mine\n"
    assert run(live, monkeypatch, script, "--model", base, "--model", "mine") == 1
    told: dict[str, list[tuple[str, str]]] = {base: [], "mine": []}
    wanted = ""
    for words in ("hello", "again"):
        for model, turns in told.items():
            turns.append(("user", words))
            turns.append(("assistant", whole_answer(live, model, *turns)))
            wanted += f"## {model}\n{turns[-1][1]}\n"
    mine = told["mine"]
    mine.append(("user", "more"))
    mine.append(("assistant", whole_answer(live, "mine", *mine)))
    wanted += f"  {base}\n* mine\n{mine[-1][1]}\n"
    for model in (base, "mine@1"):  # who comes new to it was told what the one before was
        wanted += f"## {model}\n{whole_answer(live, model, *mine, ('user', 'hello'))}\n"
    captured = capsys.readouterr()
    assert captured.out == wanted
    assert "a model is named twice" in captured.err


def test_one_that_fails_does_not_disturb_the_other(
    live: Live, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = live.context.base_name
    assert run(live, monkeypatch, "hello\n", "--model", base, "--model", "nobody") == 1
    captured = capsys.readouterr()
    assert f"## {base}\n{whole_answer(live, base, ('user', 'hello'))}\n" in captured.out
    assert "nobody: " in captured.err


@pytest.mark.parametrize(
    ("script", "words"),
    [("/use nobody\n", "there is no model 'nobody'"), ("/nonsense\n", "no command /nonsense"), ("x" * 5000, "maximum")],
)
def test_mistakes_are_told_and_the_session_goes_on(
    live: Live,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    words: str,
) -> None:
    assert run(live, monkeypatch, f"{script}\nhello\n") == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out.endswith(whole_answer(live, live.context.base_name, ("user", "hello")) + "\n")


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:1"]) == 1
    assert "cannot reach http://127.0.0.1:1" in capsys.readouterr().err
    assert main(["--url", "no-url"]) == 1
    assert "cannot reach no-url" in capsys.readouterr().err


class Other(BaseHTTPRequestHandler):
    """A web server that is no model server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_something_else_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        assert main(["--url", f"http://127.0.0.1:{other.server_port}"]) == 1
    assert "does not answer like" in capsys.readouterr().err


def test_in_a_terminal_it_says_who_is_there(live: Live) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hotswap", "chat", "--url", live.url, "--max-tokens", "3"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            read_until(ours, f"{live.context.base_name} > ")
            os.write(ours, b"/use mine\n")
            assert "now talking to mine" in read_until(ours, "mine > ")
            os.write(ours, f"/use mine {live.context.base_name}\n".encode())
            read_until(ours, f"mine | {live.context.base_name} > ")
            os.write(ours, b"hello\n")
            shown = read_until(ours, f"mine | {live.context.base_name} > ")
            assert "first after" in shown
            os.write(ours, b"\x04")
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(ours)


def test_a_terminal_gets_no_commands_of_a_models() -> None:
    assert harmless("a\x1b[2J\x07é\n\tb\x9b") == "a\ufffd[2J\ufffdé\n\tb\ufffd"


def read_until(descriptor: int, word: str) -> str:
    seen, end = "", time.monotonic() + 60
    while word not in seen:
        assert time.monotonic() < end, seen
        if select.select([descriptor], [], [], 1)[0]:
            seen += os.read(descriptor, 4096).decode("utf-8", "replace")
    return seen
