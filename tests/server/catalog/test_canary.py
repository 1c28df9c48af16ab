"""Canaries and shadows beneath HTTP: what outlives a server, what another one sees, what a failure leaves."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from server.catalog.canary import CanaryControl
from server.catalog.canary_figures import CanaryFigures
from server.catalog.canary_plan import CanaryPlan, ShadowPlan, TrafficPlan
from server.catalog.canary_rules import Rules
from server.catalog.canary_watch import CanaryWatch
from server.catalog.database import tables
from server.catalog.guard import Guard
from server.catalog.versions import VersionState
from server.errors import AdapterFailedError, ConflictError, UnknownModelError
from tests.server.catalog.support import Backend
from tests.server.catalog.test_polling import running
from tests.server.engine.ipc.clients import answer

NAME = "json"
HALF = TrafficPlan(canaries=[CanaryPlan(version=2, weight=0.5)])


def control_of(backend: Backend) -> CanaryControl:
    return CanaryControl(backend.lifecycle, CanaryFigures(backend.registry))


async def fill(backend: Backend, adapters: Mapping[str, Path]) -> None:
    """Version 1 is live, 2 a candidate, 3 was live."""
    await backend.lifecycle.install_copy(NAME, adapters["lora-r8"])
    await backend.lifecycle.install_copy(NAME, adapters["lora-r4"], activate=False)
    await backend.lifecycle.install_copy(NAME, adapters["ia3"])
    await backend.lifecycle.rollback(NAME)
    await backend.lifecycle.settle()


def states(backend: Backend) -> list[str]:
    return [backend.registry.state(version.key).value for version in backend.registry.versions(NAME)]


def drawn(backend: Backend) -> list[int]:
    """Who answers each of some users."""
    found = []
    for i in range(64):
        with backend.registry.lease(NAME, f"user-{i}") as lease:
            assert lease.key is not None
            found.append(lease.key.version)
    return found


async def test_a_split_outlives_the_server_and_another_one_sees_it(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, database_url: str
) -> None:
    rules = Rules(max_error_rate=0.25, gates=("f1>=live",))
    elsewhere = tmp_path / "elsewhere"  # another server over the same packages
    elsewhere.mkdir()
    (tmp_path / "packages").mkdir()
    (elsewhere / "packages").symlink_to(tmp_path / "packages")
    async with (
        running(tiny_base, tmp_path, database_url) as (one, _),
        running(tiny_base, elsewhere, database_url) as (two, poller),
    ):
        await fill(one, tiny_adapters)
        plan = TrafficPlan(
            canaries=[CanaryPlan(version=2, weight=0.3, rules=rules), CanaryPlan(version=3, weight=0.2)],
            shadow=ShadowPlan(version=3, weight=0.5),
        )
        assert await control_of(one).change(NAME, plan)
        await control_of(one).score(NAME, 2, {"f1": 0.75})
        await poller.poll()
        async with asyncio.timeout(60):
            while not two.registry.traffic(NAME).is_split:
                await asyncio.sleep(0.01)
        assert states(two) == states(one) == ["live", "canary", "canary"]
        assert drawn(two) == drawn(one)
        assert set(drawn(one)) == {1, 2, 3}
        texts = {number: await one.ask(f"{NAME}@{number}") for number in (1, 2, 3)}
        assert {number: await two.ask(f"{NAME}@{number}") for number in (1, 2, 3)} == texts
        before, traffic = drawn(one), one.registry.traffic(NAME)

        await control_of(two).abort(NAME, 3, reason="by the other server")
        assert states(one) == ["live", "canary", "canary"], "it has not heard of it yet"
        assert not await control_of(one).abort(NAME, 3), "what it does is done on what is"
        assert states(one)[:2] == ["live", "canary"]
        assert one.registry.traffic(NAME).shadow is None
        assert [2 if number == 2 else 1 for number in before] == drawn(one), "the other canary keeps its own"
        assert await control_of(one).change(NAME, plan)

    async with running(tiny_base, tmp_path, database_url) as (again, _):
        restored = again.registry.traffic(NAME)
        assert restored.canary(2) == traffic.canary(2)
        assert restored.scores == {"2": {"f1": 0.75}}
        assert [canary.rules for canary in restored.canaries] == [rules, Rules()]
        assert states(again) == ["live", "canary", "canary"]
        assert {number: await again.ask(f"{NAME}@{number}") for number in (1, 2, 3)} == texts
        assert (await control_of(again).promote(NAME, 3)).replaced is not None
        await again.lifecycle.settle()
        assert states(again) == ["stored", "candidate", "live"]
        again.check_integrity()


async def test_a_canary_that_cannot_be_loaded_leaves_all_as_it_was(
    backend: Backend, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    await fill(backend, tiny_adapters)
    path = backend.registry.version(NAME, 3).path
    shutil.move(path, tmp_path / "aside")
    with pytest.raises(AdapterFailedError, match="json@3 cannot be loaded"):
        await control_of(backend).change(NAME, TrafficPlan(canaries=[CanaryPlan(version=3, weight=0.5)]))
    assert not backend.registry.traffic(NAME).is_split
    assert set(drawn(backend)) == {1}
    shutil.move(tmp_path / "aside", path)
    assert await control_of(backend).change(NAME, TrafficPlan(canaries=[CanaryPlan(version=3, weight=0.5)]))
    assert set(drawn(backend)) == {1, 3}


async def test_a_change_that_is_refused_at_last_unloads_what_it_loaded(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    await fill(backend, tiny_adapters)
    plan = TrafficPlan(canaries=[CanaryPlan(version=3, weight=0.5)])
    with pytest.raises(ConflictError, match="not 7"):
        await control_of(backend).change(NAME, plan, guard=Guard(7))
    await backend.lifecycle.settle()
    assert states(backend) == ["live", "candidate", "stored"]


async def test_a_canary_that_drains_is_called_back(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await fill(backend, tiny_adapters)
    await backend.lifecycle.activate(NAME, 3)
    with backend.registry.lease(NAME) as lease:
        assert lease.key is not None
        await backend.lifecycle.rollback(NAME)
        assert states(backend)[2] == "draining"
        await control_of(backend).change(NAME, TrafficPlan(canaries=[CanaryPlan(version=3, weight=1.0)]))
        assert states(backend)[2] == "canary"
    await asyncio.sleep(0)
    assert set(drawn(backend)) == {3}
    assert len(await backend.ask(NAME)) == 12
    await control_of(backend).abort(NAME)
    await backend.lifecycle.settle()
    assert backend.registry.state(backend.registry.version(NAME, 3).key) is VersionState.STORED


async def test_what_was_judged_must_still_stand(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await fill(backend, tiny_adapters)
    control = control_of(backend)
    plan = CanaryPlan(version=2, weight=0.5, steps=(0.75, 1.0), step_requests=1)
    await control.change(NAME, TrafficPlan(canaries=[plan]))
    (judged,) = backend.registry.traffic(NAME).canaries
    await control.abort(NAME)
    assert not await control.advance(NAME, judged), "an operator has ended it meanwhile"
    last = msgspec.structs.replace(judged, steps=(1.0,))
    assert not await control.advance(NAME, last)
    assert not await control.abort(NAME, 2, judged=judged)
    assert states(backend)[:2] == ["live", "candidate"]
    with pytest.raises(ConflictError, match="no canary"):
        await control.promote(NAME)


async def test_changes_are_events(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await fill(backend, tiny_adapters)
    control = control_of(backend)
    await control.change(NAME, HALF)
    assert not await control.change(NAME, HALF)
    await control.abort(NAME, reason="odd")
    await control.change(NAME, HALF)
    await control.promote(NAME)
    with backend.database.reading() as connection:
        rows = connection.execute(select(tables.events).order_by(tables.events.c.id)).all()
    told = [(row.action, row.outcome) for row in rows][-4:]
    assert told == [("canary", "done"), ("abort", "done"), ("canary", "done"), ("promote", "done")]
    assert '"weight":0.5' in rows[-4].detail
    assert '"reason":"odd"' in rows[-3].detail
    assert backend.witness.changes[-4:] == ["canary", "abort", "canary", "promote"]
    assert [key.version for key in backend.witness.changed[-4:]] == [2, 2, 2, 2]


async def test_many_change_their_minds_at_once(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    """Changes of all kinds, side by side, while requests run: each answer is of the version that was leased."""
    await fill(backend, tiny_adapters)
    control = control_of(backend)
    watch = CanaryWatch(backend.registry, control)
    texts = {number: await backend.ask(f"{NAME}@{number}") for number in (1, 2)}
    await backend.lifecycle.activate(NAME, 3)
    texts[3] = await backend.ask(NAME)
    ended = asyncio.Event()

    async def ask(number: int) -> int:
        asked = 0
        while not ended.is_set():
            with backend.registry.lease(NAME, f"user-{number}-{asked}") as lease:
                assert lease.key is not None
                request_id = f"{number}-{asked}"
                found = await answer(backend.client, request_id, lease.key, max_tokens=12)
                assert found == texts[lease.key.version]
            asked += 1
        return asked

    async def change(number: int) -> None:
        for turn in range(6):
            plan = TrafficPlan(
                canaries=[CanaryPlan(version=version, weight=0.3) for version in (1, 2, 3)[turn % 3 :][:2]],
                shadow=None,
            )
            try:
                match (number + turn) % 4:
                    case 0 | 1:
                        await control.change(NAME, plan)
                    case 2:
                        await control.promote(NAME, 1 + turn % 3)
                    case _:
                        await control.abort(NAME)
            except (ConflictError, UnknownModelError):
                pass
            await watch.look()

    asking = [asyncio.create_task(ask(number)) for number in range(3)]
    await asyncio.gather(*(change(number) for number in range(3)))
    ended.set()
    assert min(await asyncio.gather(*asking)) > 0
    await backend.lifecycle.settle()
    backend.check_integrity()
