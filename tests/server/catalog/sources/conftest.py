from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.catalog.sources.web_server import Web, web_server


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server of this machine."""
    with web_server() as made:
        yield made
