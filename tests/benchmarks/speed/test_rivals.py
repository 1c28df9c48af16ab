"""How rivals are found and started; a stand-in takes the place of each program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.speed.__main__ import main
from benchmarks.speed.rivals import CONVERTER, llama_cpp, missing
from benchmarks.speed.servers import ServerError, Work

SERVER = """#!{python}
import http.server, json, pathlib, sys
if "--version" in sys.argv:
    print("version: 7 (abc)\\nbuilt with a compiler", file=sys.stderr)
    sys.exit()
pathlib.Path({seen!r}).write_text(json.dumps(sys.argv[1:]))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""
CONVERT = "import pathlib, sys\npathlib.Path(sys.argv[sys.argv.index('--outfile') + 1]).write_text(sys.argv[-1])\n"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a stand-in for llama-server, and one for the converter."""
    server = tmp_path / "llama-server"
    server.write_text(SERVER.format(python=sys.executable, seen=str(tmp_path / "seen")))
    server.chmod(0o755)
    (tmp_path / CONVERTER).write_text(CONVERT)
    return tmp_path


def test_each_request_names_its_adapter_as_llama_cpp_numbers_them(llama: Path) -> None:
    packages = (llama / "l0", llama / "l1")
    (llama / "l1.gguf").write_text("made before")
    rival = llama_cpp(llama / "llama-server", llama, Path("base.gguf"))
    assert rival.about == "version: 7 (abc), base.gguf"
    with rival.start(Work(llama, {"two": packages}, llama), "two") as endpoint:
        command = json.loads((llama / "seen").read_text())
    loaded = command[command.index("--lora") + 1].split(",")
    assert loaded == [str(llama / "l0.gguf"), str(llama / "l1.gguf")]
    assert [Path(path).read_text() for path in loaded] == [str(packages[0]), "made before"]
    assert endpoint.adapters == ("l0", "l1")
    asked = {"base": (0, 0.0), "l0": (0, 1.0), "l1": (1, 1.0)}
    assert endpoint.fields == {name: {"lora": [{"id": id_, "scale": scale}]} for name, (id_, scale) in asked.items()}
    assert not endpoint.process.is_running()


def test_a_server_that_ends_at_its_start_is_said(llama: Path) -> None:
    (llama / "llama-server").write_text("#!/bin/sh\necho 'no such model'; exit 1\n")
    rival = llama_cpp(llama / "llama-server", llama, Path("base.gguf"))
    work = Work(llama, {"none": ()}, llama)
    with pytest.raises(ServerError, match="ended at its start: no such model"), rival.start(work, "none"):
        pass


def test_an_adapter_that_is_not_converted_is_said(llama: Path) -> None:
    (llama / CONVERTER).write_text("raise SystemExit('no such tensor')")
    rival = llama_cpp(llama / "llama-server", llama, Path("base.gguf"))
    work = Work(llama, {"one": (llama / "l0",)}, llama)
    with pytest.raises(ServerError, match="no such tensor"), rival.start(work, "one"):
        pass


def test_what_is_missing_is_one_line(llama: Path) -> None:
    assert missing(llama / "llama-server", llama, None) is None
    for llama_server, source, vllm, word in (
        (None, None, None, "no rival is named"),
        (llama / "absent", llama, None, "LLAMA_SERVER"),
        (llama, llama, None, "LLAMA_SERVER"),
        (llama / "llama-server", None, None, "LLAMA_SOURCE"),
        (llama / "llama-server", llama / "absent", None, "LLAMA_SOURCE"),
        (None, None, llama, "VLLM"),
    ):
        why = missing(llama_server, source, vllm)
        assert why is not None
        assert word in why
        assert "\n" not in why


def test_unset_variables_of_make_are_no_rivals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["--llama-server", "", "--llama-source", "", "--vllm", ""]
    assert main(["--base", "absent", "--rivals", *given, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("bench-peers: no rival is named")
    assert not (tmp_path / "out").exists()
