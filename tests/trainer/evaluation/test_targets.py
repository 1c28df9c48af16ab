"""Packages on a server that runs already: there for the evaluation, and not a moment longer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live, live_server
from trainer.evaluation import targets as places
from trainer.evaluation.targets import EvaluationTarget, running_server
from trainer.serving.client import AdminClient
from trainer.serving.upload import publish


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tiny_base, tmp_path_factory.mktemp("data"), admin_key="secret") as live:
        yield live


@pytest.fixture
def targets(tiny_adapters: Mapping[str, Path]) -> list[EvaluationTarget]:
    return [
        EvaluationTarget("a", package=tiny_adapters["lora-r8"]),
        EvaluationTarget("b", package=tiny_adapters["lora-r4"]),
    ]


def served(server: Live) -> list[str]:
    with server.http() as http:
        models = http.get("/v1/models").json()["data"]
    return [model["id"] for model in models if model["id"].startswith("eval-")]


def test_they_are_removed_whatever_happens(server: Live, targets: list[EvaluationTarget]) -> None:
    with running_server(server.url, targets, api_key=None, admin_key="secret") as endpoints:
        assert sorted(served(server)) == sorted(endpoint.model for endpoint in endpoints.values())
        assert len(served(server)) == 2
    assert served(server) == []
    with pytest.raises(KeyboardInterrupt), running_server(server.url, targets, api_key=None, admin_key="secret"):
        raise KeyboardInterrupt
    assert served(server) == []


def test_one_that_arrived_without_our_hearing_of_it_is_removed_too(
    server: Live, targets: list[EvaluationTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        publish(*args, **kwargs)
        assert len(served(server)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(places, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt), running_server(server.url, targets, api_key=None, admin_key="secret"):
        pass
    assert served(server) == []


def test_what_cannot_be_removed_is_said_and_loses_no_answers(
    server: Live, targets: list[EvaluationTarget], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        running_server(server.url, targets, api_key=None, admin_key="secret") as endpoints,
    ):
        first, second = (endpoint.model for endpoint in endpoints.values())
        with AdminClient(server.url, "secret") as client:
            client.delete(first)  # somebody else did it
        monkeypatch.setattr(AdminClient, "__init__", _with_a_wrong_key(AdminClient.__init__))
    assert f"{second}, which eval uploaded, may still be on {server.url}" in caplog.text
    monkeypatch.undo()
    with AdminClient(server.url, "secret") as client:
        client.delete(second)
    assert served(server) == []


def _with_a_wrong_key(init: Any) -> Any:
    def made(self: AdminClient, server: str, key: str | None = None, **options: Any) -> None:
        init(self, server, "wrong", **options)

    return made
