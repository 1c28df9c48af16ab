"""``hotswap rollback`` against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.ipc.client import ClientCore
from tests.server.live import Live
from tests.trainer.publishing.conftest import ADMIN, answer
from trainer.commands.adapters import rollback
from trainer.serving.client import AdminClient
from trainer.serving.upload import upload

NAME, PROMPT = "rolled", "red 0"


@pytest.fixture
def published(server: Live, admin: AdminClient, packages: dict[str, Path]) -> dict[int, str]:
    """Three versions one after the other; what each answers."""
    answers = {}
    for number, package in enumerate(("right", "wrong", "other"), 1):
        upload(admin, packages[package], NAME, replace=True)
        answers[number] = answer(server, NAME, PROMPT)
    return answers


def command(server: Live, *more: str) -> list[str]:
    return [NAME, "--server", server.url, "--admin-key", ADMIN, *more]


def test_back_step_by_step(
    server: Live, published: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOTSWAP_ADMIN_KEY", ADMIN)
    assert rollback([NAME, "--server", f"{server.url}/v1/"]) == 0
    assert capsys.readouterr().out.startswith(f"rolled {NAME} back from version 3 to 2  digest ")
    assert answer(server, NAME, PROMPT) == published[2]
    assert rollback(command(server)) == 0
    assert answer(server, NAME, PROMPT) == published[1]
    assert rollback(command(server)) == 1
    assert "no version before 1 to go back to" in capsys.readouterr().err


def test_to_a_version(server: Live, published: dict[int, str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert rollback(command(server, "--to", "1")) == 0
        assert answer(server, NAME, PROMPT) == published[1]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"rolled {NAME} back from version 3 to 1")
    assert out[1] == f"{NAME} serves version 1 already"
    assert rollback(command(server, "--to", "3")) == 0
    assert rollback(command(server, "--to", "9")) == 1
    assert "no version '9'" in capsys.readouterr().err


def test_only_from_what_was_seen_to_be_live(
    server: Live, published: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollback(command(server, "--from", "3")) == 0
    assert rollback(command(server, "--from", "3")) == 1, "repeated it does not go back twice"
    assert "serves version 2, not 3: it was changed meanwhile" in capsys.readouterr().err
    assert answer(server, NAME, PROMPT) == published[2]


def test_refusals(
    server: Live, admin: AdminClient, packages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rollback(command(server)) == 1
    assert "the server refused to roll back (404)" in capsys.readouterr().err
    upload(admin, packages["right"], NAME, activate=False)
    assert rollback(command(server, "--to", "1")) == 1
    assert "not served yet: version 1 is a candidate" in capsys.readouterr().err
    assert rollback([NAME, "--server", server.url, "--admin-key", "guess"]) == 1
    assert "give a key with --admin-key" in capsys.readouterr().err
    assert rollback([NAME, "--server", "http://127.0.0.1:9"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    for wrong in (["--to", "0"], ["--to", "one"], ["--from", "-1"]):
        with pytest.raises(SystemExit) as ended:
            rollback(command(server, *wrong))
        assert ended.value.code == 2


def test_a_server_that_is_busy_for_a_moment_is_asked_again(server: Live, published: dict[int, str]) -> None:
    engine = server.context.engine
    assert isinstance(engine, ClientCore)

    def as_while_it_starts_again(ready: bool) -> None:
        engine._ready = ready

    server.on_loop(lambda: as_while_it_starts_again(False))
    server.loop.call_soon_threadsafe(server.loop.call_later, 0.5, as_while_it_starts_again, True)
    assert rollback(command(server)) == 0
    assert answer(server, NAME, PROMPT) == published[2]
