"""The heap, in processes of their own: where threads allocate from, and that what is free goes back to the machine."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")

# Two threads allocate at once, for one alone could be given the main thread's heap.
WHERE = """
import ctypes, re, sys, threading
from server.memory import share_heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
found, together = [], threading.Barrier(2)

def allocate():
    found.append(libc.malloc(1000))
    together.wait()

if sys.argv[1] == "shared":
    share_heap()
threads = [threading.Thread(target=allocate) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
start, end = re.search(r"^(\\w+)-(\\w+) .*\\[heap\\]$", open("/proc/self/maps").read(), re.MULTILINE).groups()
print(sum(int(start, 16) <= address < int(end, 16) for address in found))
"""

# Pieces with one that stays behind them: the heap cannot become shorter.
RESIDENT = """
import ctypes, psutil
from server.memory import give_back, share_heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
share_heap()
pieces = [libc.malloc(60_000) for _ in range(2_000)]
for piece in pieces:
    ctypes.memset(piece, 1, 60_000)
for piece in pieces[:-1]:
    libc.free(piece)
before = psutil.Process().memory_info().rss
give_back()
print(before - psutil.Process().memory_info().rss)
"""


def run(script: str, *arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_threads_share_the_heap() -> None:
    assert run(WHERE, "shared") == 2
    assert run(WHERE, "not shared") < 2, "the test sees where a thread allocates"


def test_what_is_free_is_given_back() -> None:
    assert run(RESIDENT) > 100e6  # of 120
