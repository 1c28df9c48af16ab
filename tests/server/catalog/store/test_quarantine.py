from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

from server.catalog.store.quarantine import Quarantine


def test_each_server_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first, second = Quarantine(tmp_path), Quarantine(tmp_path)
    assert (first.folder, second.folder) == (tmp_path / "0", tmp_path / "1")
    closing = threading.Thread(target=first.close)  # in any thread
    closing.start()
    closing.join()
    assert Quarantine(tmp_path).number == 0


def test_only_what_servers_that_are_gone_left_is_deleted(tmp_path: Path) -> None:
    places = []
    servers = [Quarantine(tmp_path) for _ in range(3)]
    for server in servers:
        places.append([server.new(purpose) for purpose in ("upload", "deleted", "fetch")])
        for place in places[-1]:
            (place / "below").mkdir(parents=True)
        (server.folder / "upload-mine").mkdir()
    servers[0].close()
    servers[2].close()
    again = Quarantine(tmp_path)
    assert again.number == 0
    assert [[place.exists() for place in of_one] for of_one in places] == [[False] * 3, [True] * 3, [False] * 3]
    assert all((server.folder / "upload-mine").is_dir() for server in servers), "not a name that we give"


def take_and_die(root: Path) -> None:
    Quarantine(root).new("upload").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_server_that_is_killed_lets_go(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=take_and_die, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "0").iterdir())) == 1
    assert list(Quarantine(tmp_path).folder.iterdir()) == []
