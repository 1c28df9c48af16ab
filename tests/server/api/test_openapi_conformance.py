"""Requests made from the description, right and wrong ones: each is answered as it says, and never by a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.factory import make_base
from tests.server.live import Live, live_server

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that describes itself and tells all it can; its answers are short."""
    base = make_base(tmp_path_factory.mktemp("described") / "tiny", max_position_embeddings=64)
    with live_server(base, tmp_path_factory.mktemp("data"), docs=True, tokenizer_info=True, key_rpm=0) as live:
        yield live


def ask_all(described: Live, mode: GenerationMode, examples: int, part: slice) -> int:
    """So many requests of each operation of ``part``; how many operations that are."""
    schema = schemathesis.openapi.from_url(f"{described.url}/openapi.json")
    settings = hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    asked = 0
    with requests.Session() as session:
        for found in list(schema.get_all_operations())[part]:
            assert isinstance(found, Ok)
            operation = found.ok()

            @settings
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                case.call_and_validate(session=session, checks=CHECKS, timeout=120)

            try:
                ask()
            except hypothesis.errors.Unsatisfiable:  # an operation without anything that could be wrong
                continue
            asked += 1
    with described.http() as http:
        assert http.get("/ready").status_code == 200
    return asked


@pytest.mark.parametrize(("mode", "first"), [(GenerationMode.POSITIVE, 0), (GenerationMode.NEGATIVE, 4)])
def test_a_few_requests_of_some_kinds(described: Live, mode: GenerationMode, first: int) -> None:
    assert ask_all(described, mode, 2, slice(first, None, 8)) > 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_many_requests_of_each_kind(described: Live, mode: GenerationMode) -> None:
    assert ask_all(described, mode, 100, slice(None)) > 20
