from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bases.cache import build_once

HOLD = """
import sys, time
from pathlib import Path
from bases.cache import build_once

def build(staging):
    print("building", flush=True)
    time.sleep(600)

build_once(Path(sys.argv[1]), Path.exists, build, print)
"""


def finished(staging: Path) -> Path:
    built = staging / "base"
    built.mkdir()
    return built


def test_two_imports_take_turns_and_the_second_finds_the_result(tmp_path: Path) -> None:
    target = tmp_path / "bases" / "one"
    building, waiting = threading.Event(), threading.Event()
    words: list[str] = []

    def slowly(staging: Path) -> Path:
        building.set()
        assert waiting.wait(60)
        return finished(staging)

    def say(word: str) -> None:
        words.append(word)
        waiting.set()

    def again(staging: Path) -> Path:
        raise AssertionError("built twice")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build_once, target, Path.exists, slowly, words.append)
        assert building.wait(60)
        second = pool.submit(build_once, target, Path.exists, again, say)
        assert first.result(60) == second.result(60) == target
    assert words == ["another import is running; waiting for it"]


def test_an_import_that_was_killed_keeps_nobody_waiting(tmp_path: Path) -> None:
    target = tmp_path / "one"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"building\n"
        child.kill()
    words: list[str] = []
    assert build_once(target, Path.exists, finished, words.append).is_dir()
    assert words == []
