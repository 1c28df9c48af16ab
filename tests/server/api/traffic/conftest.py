"""One server for all tests of shared-out requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.api.support import archive, wanted
from tests.server.api.traffic.calls import url
from tests.server.live import Live, live_server


@pytest.fixture(scope="package")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all; each test has a name of its own."""
    with live_server(base, tmp_path_factory.mktemp("traffic")) as made:
        yield made
        made.wait_idle()


@pytest.fixture(scope="package")
def texts(base: Path, packages: dict[str, Path]) -> dict[int, str]:
    """What versions 1 and 2 answer."""
    return {1: wanted(base, packages["lora"]), 2: wanted(base, packages["lora-2"])}


@pytest.fixture
def admin(live: Live) -> Iterator[httpx.Client]:
    with live.http() as http:
        yield http


@pytest.fixture
def name(live: Live, packages: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name whose version 1 is live and whose version 2 is a candidate."""
    made = request.node.name[:100].replace("[", "-").replace("]", "")
    with live.http() as http:
        for package, activate in (("lora", True), ("lora-2", False)):
            response = http.put(
                url(made), params={"activate": activate}, files={"f": archive(packages[package], tmp_path)}
            )
            assert response.status_code == 201, response.text
        yield made
        http.delete(url(made))
    live.wait(lambda: not live.on_loop(lambda: live.context.shadows.sequences), "copies to end")
