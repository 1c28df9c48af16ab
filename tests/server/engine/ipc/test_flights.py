"""Whom the death of an engine costs what: who is computed again, who waits for a turn, who is given up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from server.engine.ipc.buffers import OutputBuffer
from server.engine.ipc.flights import MARGIN, MOST_DEATHS, Flight, Flights
from server.engine.messages import RequestOutput
from server.errors import EngineUnavailableError, RequestEndsEngineError
from tests.server.engine.ipc.clients import key, request


class Crowd:
    """Requests of readers that forget what they took, and an engine that comes and goes."""

    def __init__(self, names: str, *, forgetful: bool = True) -> None:
        self.flights = Flights()
        self.forgetful = forgetful
        for name in names:
            self.submit(name)

    def submit(self, name: str) -> Flight:
        flight = Flight(request(name), OutputBuffer(), lambda: self.forgetful, lambda: None, sent=True)
        self.flights.add(flight)
        return flight

    def tell(self, name: str, tokens: int = 1) -> None:
        """``name`` has got further."""
        flight = self.flights.heard(RequestOutput(request_id=name, token_ids=[1] * tokens))
        assert flight is not None
        flight.buffer.was_read = True

    def die(self) -> dict[str, type[Exception]]:
        """The engine dies: who ends with it."""
        return {flight.request.request_id: type(error) for flight, error in self.flights.lost()}

    def next_engine(self) -> str:
        """Another one comes: who is sent to it at once."""
        return names(self.flights.due()) + self.next()

    def next(self) -> str:
        """Who is sent to it now."""
        return names(filter(None, [self.flights.next_suspect()]))

    def end(self, name: str) -> None:
        self.flights.remove(name)


def names(flights: Iterable[Flight]) -> str:
    return "".join(flight.request.request_id for flight in flights)


def test_the_first_death_has_all_sent_again_in_their_order() -> None:
    crowd = Crowd("badc")
    crowd.tell("d")
    assert crowd.die() == {}
    assert crowd.next_engine() == "badc"


def test_what_was_handed_out_is_not_computed_twice() -> None:
    crowd = Crowd("abc", forgetful=False)
    crowd.tell("b")
    assert crowd.die() == {"b": EngineUnavailableError}
    assert crowd.next_engine() == "ac"


def test_nothing_of_a_former_life_is_heard() -> None:
    crowd = Crowd("a")
    crowd.tell("a")
    crowd.die()
    late = RequestOutput(request_id="a", token_ids=[7])
    assert crowd.flights.heard(late) is None, "a hung process that wakes up before it is killed"
    assert [len(flight.buffer) for flight in crowd.flights] == [0]


def test_suspects_go_one_by_one_and_one_ends_for_its_own_deaths() -> None:
    crowd = Crowd("abc")
    crowd.die()
    assert crowd.next_engine() == "abc"
    crowd.die()
    assert crowd.next_engine() == "a"
    assert crowd.next() == "", "a is on trial"
    crowd.end("a")
    assert crowd.next() == "b"
    fresh = crowd.submit("f")
    assert crowd.die() == {"b": RequestEndsEngineError}
    assert fresh.deaths == 1
    assert crowd.next_engine() == "fc", "who is no suspect yet need not wait"
    crowd.end("c")
    crowd.end("f")
    assert not list(crowd.flights)


def test_a_suspect_is_cleared_by_getting_further_than_before() -> None:
    crowd = Crowd("ab")
    crowd.tell("a", 10)
    crowd.die()
    crowd.next_engine()
    crowd.tell("a", 3)
    crowd.die()
    assert crowd.next_engine() == "a"
    crowd.tell("a", 10 + MARGIN)
    assert crowd.next() == "", "as far as it was when an engine ended"
    crowd.tell("a")
    assert crowd.next() == "b"
    assert crowd.die() == {}, "it was a after all, or b"
    assert crowd.next_engine() == "a"
    crowd.tell("a", 100)
    assert crowd.next() == "", "now it has to come to its end"
    assert crowd.die() == {"a": RequestEndsEngineError}
    assert crowd.next_engine() == "b"


@pytest.mark.parametrize("leaves", ["a", "b"])
def test_a_suspect_that_leaves_gives_its_turn(leaves: str) -> None:
    crowd = Crowd("abc")
    crowd.die()
    crowd.next_engine()
    crowd.die()
    assert crowd.next_engine() == "a"
    crowd.end(leaves)
    crowd.end("a")
    assert crowd.next() == ("b" if leaves == "a" else "c")


def test_no_request_is_sent_for_ever() -> None:
    crowd = Crowd("ab")
    for flight, deaths in zip(crowd.flights, (MOST_DEATHS - 1, MOST_DEATHS - 2), strict=True):
        flight.deaths = deaths
    assert crowd.die() == {"a": EngineUnavailableError}
    assert crowd.next_engine() == "b"


def test_those_that_wait_can_be_taken_out() -> None:
    crowd = Crowd("a")
    crowd.die()
    mine = Flight(request("m", key("mine")), OutputBuffer(), lambda: True, lambda: None)
    crowd.flights.add(mine)
    crowd.submit("sent")
    assert crowd.flights.take_waiting(key("mine", 2)) == []
    assert crowd.flights.take_waiting(key("mine")) == [mine]
    assert names(crowd.flights.take_waiting()) == "a"
    assert names(crowd.flights) == "sent"


def test_an_end_for_good_tells_against_nobody() -> None:
    crowd = Crowd("ab")
    for _ in range(2):
        crowd.die()
        crowd.next_engine()
    assert [(flight.request.request_id, type(error)) for flight, error in crowd.flights.end_all()] == [
        ("a", EngineUnavailableError),  # on trial
        ("b", EngineUnavailableError),
    ]
    assert not list(crowd.flights)
