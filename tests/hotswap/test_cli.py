"""The one command: dispatch, exit codes and quick help."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bases.errors import BaseModelError
from hotswap import cli


def run(*args: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", code] if code else [sys.executable, "-m", "hotswap"]
    return subprocess.run([*start, *args], capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_every_command_and_exits_0() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hotswap.cli import main; main(['--help']); main(['--version']); main(['trian']);"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'httpx', 'rich', 'server', 'trainer', 'adapters'};"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr


def test_no_command_is_wrong_usage() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stdout.startswith("usage: hotswap")


def test_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hotswap {importlib.metadata.version('hotswap')}\n"


@pytest.mark.parametrize(("typed", "meant"), [("serv", "serve"), ("trian", "train"), ("pubilsh", "publish")])
def test_unknown_command_suggests_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed]) == 2
    error = capsys.readouterr().err
    assert f"Did you mean {meant!r}?" in error
    assert error.count("\n") == 1


def test_unknown_command_far_from_all_suggests_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    assert "mean" not in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_exists_and_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    assert exit_.value.code == 0
    assert f"hotswap {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_wrong_flag_exits_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main([name, "--no-such-flag"])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert f"hotswap {name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_help_of_a_command_does_not_import_torch(name: str) -> None:
    code = (
        f"import sys; from hotswap.cli import main\ntry: main([{name!r}, '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr


def module_with(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real module whose ``main`` is ``body``, registered as the command ``probe``."""
    source = "from bases.errors import BaseModelError\ndef main(argv):\n    " + body + "\n"
    (folder / "probe_command.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "probe_command", raising=False)
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("probe_command", "main", "a probe"))


def test_the_command_s_exit_code_and_arguments_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_with("return len(argv)", tmp_path, monkeypatch)
    assert cli.main(["probe", "a", "b", "c"]) == 3


def test_our_error_is_one_plain_line_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert issubclass(BaseModelError, Exception)
    module_with("raise BaseModelError('no such base:\\n  try another')", tmp_path, monkeypatch)
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr().err == "hotswap: no such base: try another\n"


def test_an_error_that_is_not_ours_is_a_line_and_its_traceback_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module_with("return 1 // 0", tmp_path, monkeypatch)
    assert cli.main(["probe", "a"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hotswap: ZeroDivisionError: integer division or modulo by zero; the traceback is in ")
    assert error.count("\n") == 1
    kept = Path(error.rpartition(" ")[2].strip()).read_text(encoding="utf-8")
    assert kept.startswith(f"hotswap {importlib.metadata.version('hotswap')}\n")
    assert "Traceback (most recent call last)" in kept
    assert "probe_command.py" in kept
    monkeypatch.setenv("HOTSWAP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("open('/nowhere/x', 'w')", "hotswap: /nowhere/x: No such file or directory; "),
        ("import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')", "hotswap: the disk is full: "),
        ("raise KeyError('a\\n' * 5000)", "hotswap: KeyError: "),
        ("raise RecursionError", "hotswap: RecursionError"),
    ],
)
def test_any_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: str, words: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # where nothing can be kept
    module_with(body, tmp_path, monkeypatch)
    assert cli.main(["probe"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(words)
    assert error.endswith("; set HOTSWAP_DEBUG=1 to see the traceback\n")
    assert error.count("\n") == 1
    assert len(error) < 700


def test_an_error_of_one_of_several_processes_is_left_for_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOTSWAP_ERROR_FILE", str(tmp_path / "error"))
    module_with("raise RuntimeError('lost')", tmp_path, monkeypatch)
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr().err == ""
    assert (tmp_path / "error").read_text().startswith("RuntimeError: lost; the traceback is in ")


def test_interrupt_exits_130_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "probe_command.py").write_text(
        "import signal\ndef main(argv):\n    print('ready', flush=True)\n    signal.pause()\n"
    )
    code = (
        "import sys; from hotswap import cli;"
        "cli.COMMANDS['probe'] = cli.Command('probe_command', 'main', '');"
        "sys.exit(cli.main(['probe']))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, env=env, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_broken_pipe_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "probe_command.py").write_text(
        "def main(argv):\n    for _ in range(100000):\n        print('x' * 100)\n    return 0\n"
    )
    code = (
        "import sys; from hotswap import cli;"
        "cli.COMMANDS['probe'] = cli.Command('probe_command', 'main', '');"
        "sys.exit(cli.main(['probe']))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, env=env, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "x" * 100 + "\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=30) == cli.EXIT_PIPE
