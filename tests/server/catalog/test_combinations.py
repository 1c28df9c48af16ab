"""Combinations as requests name them, and how they come into memory and leave it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from adapters.package.added_tokens import AddedToken
from adapters.package.chat_template import PackageChat
from adapters.package.head import PackageHead
from adapters.package.sentence_model import SentenceModel
from server.adapter_key import AdapterKey, Weighted, combined, written_weight
from server.catalog.combinations import Part, check_members, split_model
from server.catalog.memory_ledger import Budget
from server.catalog.places import Stage
from server.catalog.residency import Residency
from server.catalog.versions import AdapterVersion
from server.errors import AdapterFailedError, InvalidRequestError, QueueFullError, UnknownModelError
from tests.server.catalog.test_residency import Scene, turns

KNOWN = {"a", "b", "c", "ft:base:me::7"}


def split(model: str) -> list[Part]:
    return split_model(model, "base", KNOWN.__contains__)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("a", [("a", 1.0)]),
        ("a@3", [("a@3", 1.0)]),
        ("base:a:2+b", [("a", 2.0), ("b", 1.0)]),
        ("a:0.7", [("a", 0.7)]),
        ("a:0.7+b:0.3", [("a", 0.7), ("b", 0.3)]),
        ("a+b", [("a", 1.0), ("b", 1.0)]),
        ("a@3:-2+b@1:.5+c:0", [("a@3", -2.0), ("b@1", 0.5), ("c", 0.0)]),
        ("ft:base:me::7+a:2", [("ft:base:me::7", 1.0), ("a", 2.0)]),
        ("ft:base:me::7:0.5+a", [("ft:base:me::7", 0.5), ("a", 1.0)]),
        ("ft:base:me::12345678", [("ft:base:me::12345678", 1.0)]),  # the name of one that is gone
        ("a:1e-3+b", [("a", 0.001), ("b", 1.0)]),
        ("a:nan+b:1_0+c: 1", [("a:nan", 1.0), ("b:1_0", 1.0), ("c: 1", 1.0)]),  # no weights, and no names
    ],
)
def test_members_and_weights(model: str, parts: list[tuple[str, float]]) -> None:
    assert split(model) == parts


@pytest.mark.parametrize(
    ("model", "told"),
    [("a+a:2", "named twice"), ("a:101+b", "from -100 to 100"), ("+".join("abcdefghi"), "one request may combine 8")],
)
def test_what_cannot_be_meant(model: str, told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        split(model)


@pytest.mark.parametrize("weight", [0.7, -2.0, 1e-9, 0.1 + 0.2, 100.0, 0.0, 12345.678901])
def test_weights_are_written_so_that_they_can_be_read(weight: float) -> None:
    (part,) = split_model(f"a:{written_weight(weight / 1000)}", "base", KNOWN.__contains__)
    assert part.weight == weight / 1000


def test_a_key_is_of_contents_weights_and_their_order() -> None:
    a, b, again = AdapterKey("a", 1, "x" * 64), AdapterKey("b", 1, "y" * 64), AdapterKey("a", 7, "x" * 64)
    key = combined([Weighted(a, 0.7), Weighted(b, 0.3)])
    others = [[Weighted(a, 0.7), Weighted(b, 0.31)], [Weighted(b, 0.3), Weighted(a, 0.7)], [Weighted(a, 0.7)]]
    assert str(key) == "a@1:0.7+b@1:0.3"
    assert key.versions == (a, b)
    assert combined([Weighted(again, 0.7), Weighted(b, 0.3)]).digest == key.digest
    assert key.digest not in {combined(other).digest for other in others}
    assert combined([Weighted(a)]) == a
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(key), type=AdapterKey) == key


def _version(name: str, **fields: object) -> AdapterVersion:
    known = AdapterVersion(
        key=AdapterKey(name, 1, name), path=Path(), kind="LORA", nbytes=1, num_virtual_tokens=0, created=0.0
    )
    return replace(known, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (_version("b", num_virtual_tokens=5), "b@1 cannot be combined.*virtual tokens"),
        (_version("b", vocab_size=70), "b@1 cannot be combined.*tokens of its own"),
        (_version("b", tokens=(AddedToken(id=3, content="<x>"),)), "b@1 cannot be combined.*tokens of its own"),
        (_version("b", sentence_model=SentenceModel()), "b@1 cannot be combined.*makes other embeddings"),
        (_version("b", chat=PackageChat(template="{{ x }}")), "b@1 cannot be combined.*not those of a@1"),
    ],
)
def test_versions_that_read_or_write_otherwise_are_refused(other: AdapterVersion, told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told) as refused:
        check_members([_version("a"), other])
    assert refused.value.code == "adapters_not_combinable"
    check_members([_version("a"), _version("c")])


def test_one_may_have_a_head() -> None:
    headed = [_version(name, head=PackageHead(num_labels=2)) for name in "ab"]
    check_members([_version("c"), headed[0], _version("d")])
    with pytest.raises(InvalidRequestError, match=r"b@1 cannot be combined.*a head of its own, and so has a@1"):
        check_members([_version("c"), *headed])


async def test_members_begin_to_load_together_when_a_request_is_queued() -> None:
    scene = Scene()
    with scene.registry.lease("a:2+b") as lease:
        scene.residency.want(lease)
        await turns()
        assert [str(key) for key in scene.engine.loads] == ["a@1", "b@1"]
        assert lease.key is not None
        await scene.residency.ensure(lease)
        assert [str(key) for key in scene.engine.loads] == ["a@1", "b@1", "a@1:2+b@1"]
    scene.residency.check_integrity()


async def test_members_are_resident_first_and_a_combination_is_made_once_for_all() -> None:
    scene = Scene()
    names = ["a:0.7+b:0.3"] * 3 + ["a"]
    await asyncio.gather(*(scene.use(name) for name in names))
    assert [str(key) for key in scene.engine.loads] == ["a@1", "b@1", "a@1:0.7+b@1:0.3"]
    await scene.use("b@1", "a:0.7+b:0.3")
    assert len(scene.engine.loads) == 3
    assert scene.residency.nbytes == 40
    scene.residency.check_integrity()


@pytest.mark.parametrize("room", [1, 2, 3])
async def test_however_little_room_there_is_nobody_waits_for_ever(room: int) -> None:
    scene = Scene(max_count=room)
    async with asyncio.timeout(10):
        await asyncio.gather(*(scene.use(name) for name in ("a+b", "b+c:2", "c+a", "d:-1+e", "a", "e+f+a")))
    assert scene.residency.num_resident <= room
    scene.residency.check_integrity()


async def test_a_combination_holds_its_versions_and_needs_them_in_memory_no_more() -> None:
    scene = Scene(max_count=2)
    with pytest.raises(UnknownModelError):
        scene.registry.lease("a+unknown")
    async with scene.using("a:0.5+b") as lease:
        lease.sequences = 2
        assert [scene.registry.running(scene.keys[name]) for name in "ab"] == [2, 2]
        await scene.use("c", "d")
        assert lease.key in scene.engine.resident
        unused = asyncio.create_task(scene.registry.unused(scene.keys["a"]))
        await turns()
        assert not unused.done()
    await unused


async def test_what_is_taken_away_takes_its_combinations_along() -> None:
    scene = Scene()
    await scene.use("a+b", "a:2+c", "b+c")
    await scene.residency.unload(scene.keys["a"])
    assert sorted(map(str, scene.engine.resident)) == ["b@1", "b@1+c@1", "c@1"]
    scene.residency.check_integrity()


async def test_thousands_of_weights_take_no_more_room_than_a_few() -> None:
    scene = Scene()
    scene.residency = Residency(scene.engine, scene.registry, Budget(), max_combinations=3)
    await scene.use(*(f"a:{i}+b" for i in range(2, 40)))
    await scene.residency.settle()
    assert sorted(map(str, scene.engine.resident)) == ["a@1", "a@1:37+b@1", "a@1:38+b@1", "a@1:39+b@1", "b@1"]
    scene.residency.check_integrity()


async def test_one_more_than_there_may_be_is_refused_while_all_are_in_use() -> None:
    scene = Scene()
    scene.residency = Residency(scene.engine, scene.registry, Budget(), max_combinations=2)
    async with scene.using("a+b"), scene.using("a:2+b"):
        with scene.registry.lease("a:3+b") as lease:
            with pytest.raises(QueueFullError, match="max-combinations"):
                scene.residency.want(lease)
            with pytest.raises(QueueFullError, match="2 combinations"):
                await scene.residency.ensure(lease)
        await scene.use("a+b", "c")
    await scene.use("a:3+b")
    assert scene.residency.stage(scene.keys["a"]) is Stage.RESIDENT


async def test_a_member_that_cannot_be_loaded_is_told_by_its_own_name() -> None:
    scene = Scene()
    scene.engine.weights = dict.fromkeys("ac", 10)
    with pytest.raises(AdapterFailedError, match=r"^b@1 cannot be loaded"):
        await scene.use("a+b")
    with pytest.raises(AdapterFailedError, match=r"^b@1 cannot be loaded"):
        await scene.use("c+b")
    await scene.use("a+c")
