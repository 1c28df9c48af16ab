"""Those who change what is served, each one name, at any of the servers; what every server must then say is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import aiohttp

from loadtests.soak.clients import PATIENCE, settle
from loadtests.soak.references import Package
from loadtests.soak.server import Server
from loadtests.soak.site import Site
from loadtests.soak.state import ABSENT, State, code_of, look, look_into_catalog, send

KEPT = 5  # versions of a name, beyond which old ones are deleted
SEEN_LIMIT = 10.0  # seconds: later than this is wrong; how many were later than promised is told
LAST_WORDS = 0.5  # in which a database may end what a server that was killed had sent it
UPLOADED = 2  # candidates in the beginning, for two changes at once
ASKED = 3  # requests to a name with a canary
Fits = Callable[[State], bool]


class Changer:
    """The only one who changes ``name``, so that it knows what must be served after each change."""

    def __init__(self, site: Site, name: str, random: Random, *, canaries: bool = True) -> None:
        self._site, self._name, self._random = site, name, random
        self._at = f"/v1/adapters/{name}"
        self._canaries = canaries
        self._state = ABSENT

    async def run(self) -> None:
        """One change after another, each looked at."""
        while not self._site.over.is_set():
            await self.step()
            await self._site.pause(self._random.uniform(0, 0.3))

    async def step(self) -> None:
        """One random change that makes sense now."""
        state, server = self._state, self._random.choice(self._site.servers)
        found = await look(server, self._name)
        if found not in (None, state):
            self._wrong(f"{server.name} says {found}, but {state} is what was changed last")
        if not state.versions:
            await self._upload(activate=True)
        elif len(state.versions) > KEPT and state.idle:
            await self._delete_version(state.idle[0])
        else:
            changes = self._changes(state)
            (change,) = self._random.choices(list(changes), list(changes.values()))
            await change()

    async def once_each(self) -> None:
        """Every sort of change once, while nobody disturbs it; the name is gone afterwards."""
        *candidates, live = self._site.references.packages[: UPLOADED + 1]
        await self._upload(activate=True, package=live)
        for package in candidates:
            await self._upload(activate=False, package=package)
        if self._canaries:
            for share in (self._begin_canary, self._abort, self._begin_canary, self._promote):
                await share()
        for change in (self._race, self._activate, self._rollback, self._upload_rubbish, self.remove):
            await change()

    async def remove(self) -> None:
        """Let the name go in the end."""
        deadline = time.monotonic() + PATIENCE
        while self._state.versions and time.monotonic() < deadline:
            await self._remove()

    def _changes(self, state: State) -> dict[Callable[[], Awaitable[object]], int]:
        """What may be done, and how often each is."""
        changes: dict[Callable[[], Awaitable[object]], int] = {
            lambda: self._upload(activate=True): 6,
            lambda: self._upload(activate=False): 2,
            self._activate: 4,
            self._rollback: 3,
            self._remove: 1,
            self._upload_rubbish: 1,
        }
        if self._canaries and state.canaries:
            changes |= {self._promote: 4, self._abort: 4, self._grow: 2}
        elif self._canaries and state.idle:
            changes |= {self._begin_canary: 6}
        if len(state.idle) > 1:
            changes |= {self._race: 3}
        return changes

    # ---- changes ----

    async def _upload(self, *, activate: bool, package: Package | None = None) -> None:
        package, before = package or self._random.choice(self._site.references.packages), self._state
        live = self._site.ledger.content(f"{self._name}@{before.live}")

        def fits(now: State) -> bool:
            if live is package and now == before:  # that is what it served
                return True
            if activate:
                return now.live is not None and now == State(now.live, before.versions | {now.live})
            return now == State(before.live, now.versions, before.canaries) and self._is_one_more(before, now)

        done = "uploads" if activate else "candidates"
        params = {"activate": str(activate).lower()}
        await self._change(done, "PUT", self._at, fits, package, data=_form(package.archive()), params=params)

    async def _upload_rubbish(self) -> None:
        rubbish = _form(self._random.randbytes(2000))
        if await self._change("refused uploads", "PUT", self._at, lambda _: False, data=rubbish) == 201:
            self._wrong("an upload of random bytes was accepted")

    async def _activate(self) -> None:
        number, before = self._random.choice(sorted(self._state.versions)), self._state
        after = before if number == before.live else State(number, before.versions)
        await self._change("activations", "PATCH", self._at, lambda now: now == after, json={"version": number})

    async def _rollback(self) -> None:
        before = self._state

        def fits(now: State) -> bool:
            return now.live in before.versions - {before.live} and now == State(now.live, before.versions)

        await self._change("rollbacks", "POST", f"{self._at}/rollback", fits)

    async def _delete_version(self, number: int) -> None:
        before = self._state
        after = State(before.live, before.versions - {number}, before.canaries)
        await self._change(
            "deletes", "DELETE", f"{self._at}/versions/{number}", lambda now: now == after, params=self._mode()
        )

    async def _remove(self) -> None:
        await self._change("removals", "DELETE", self._at, lambda now: now == ABSENT, params=self._mode())

    def _mode(self) -> dict[str, str]:
        return {"mode": self._random.choice(("drain", "force"))}

    # ---- canaries ----

    async def _begin_canary(self) -> None:
        await self._share(self._random.choice(self._state.idle), "canaries")

    async def _grow(self) -> None:
        await self._share(min(self._state.canaries), "canary weights")

    async def _share(self, number: int, done: str) -> None:
        before = self._state
        canary = {"version": number, "weight": self._random.choice((0.05, 0.3, 0.6))}
        after = State(before.live, before.versions, frozenset({number}))
        await self._change(done, "PATCH", self._at, lambda now: now == after, json={"canary": canary})

    async def _promote(self) -> None:
        after = State(min(self._state.canaries), self._state.versions)
        await self._change("promotions", "POST", f"{self._at}/promote", lambda now: now == after)

    async def _abort(self) -> None:
        after = State(self._state.live, self._state.versions)
        await self._change("aborts", "POST", f"{self._at}/abort", lambda now: now == after)

    # ---- two at once ----

    async def _race(self) -> None:
        """Two who have seen the same change it at once, at servers of their own: one gets through, at most."""
        before, began = self._state, time.monotonic()
        targets = self._random.sample(before.idle, 2)
        servers = [self._random.choice(self._site.servers), self._random.choice(self._site.servers)]
        bodies = [{"version": target, "expected_live": before.live} for target in targets]
        answers = await asyncio.gather(
            *(send(server, "PATCH", self._at, json=body) for server, body in zip(servers, bodies, strict=True))
        )
        self._site.ledger.counts["races"] += 1
        won = [target for target, (status, _) in zip(targets, answers, strict=True) if status == 200]
        excused = [self._excused(server, *a, began) for server, a in zip(servers, answers, strict=True) if a[0] != 200]
        if len(won) > 1 or (not won and not any(excused)):
            self._wrong(f"two changes with expected_live {before.live} were answered {answers}")
        open_ = [target for target, answer in zip(targets, answers, strict=True) if _is_open(*answer)]
        allowed = [State(target, before.versions) for target in won or open_] + ([] if won else [before])
        winner = servers[targets.index(won[0])] if won else None
        after = await self._settled(winner)
        if after is not None and after not in allowed:
            self._wrong(f"after {answers} to two changes of {before} it is {after}")
        await self._go_on(after, winner or servers[0], time.monotonic() if winner else None)

    # ---- what came of it ----

    async def _change(
        self, done: str, method: str, path: str, fits: Fits, package: Package | None = None, **request: Any
    ) -> int:
        """Make a change at one of the servers, and see that all is as it was or as it should be; returns the status.

        ``fits`` says whether a state is what the change makes of this one, if ``package`` is what was uploaded.
        """
        server, began = self._random.choice(self._site.servers), time.monotonic()
        status, body = await send(server, method, path, **request)
        answered = time.monotonic()
        made, unknown = status in (200, 201), _is_open(status, body)
        self._count(done, server, status, body, began)
        if made and package is not None:
            self._site.ledger.knows(body["id"], package)
        after = await self._settled(None if unknown else server)
        if after is None:
            return status
        if unknown:
            self._site.ledger.counts["unanswered, " + ("not made" if after == self._state else "made")] += 1
        self._judge(f"{method} {path} at {server.name} ({status})", after, fits, made=made, unknown=unknown)
        if package is not None:
            for number in after.versions - self._state.versions:
                self._site.ledger.knows(f"{self._name}@{number}", package)
        await self._go_on(after, server, answered if made else None)
        return status

    def _count(self, done: str, server: Server, status: int, body: Any, began: float) -> None:
        counts = self._site.ledger.counts
        if status in (200, 201):
            counts[done] += 1
            return
        refused = "unanswered changes" if not status else "refused changes"
        counts["refused uploads" if done == "refused uploads" and status else refused] += 1
        if not self._excused(server, status, body, began):
            self._wrong(f"{done} at {server.name}: {status} {body}")

    def _excused(self, server: Server, status: int, body: Any, began: float) -> bool:
        """Whether a change may be refused so: for good reason, or while a fault is under way."""
        return 400 <= status < 500 or self._site.ledger.excuses(code_of(status, body), began, server.name)

    def _judge(self, what: str, after: State, fits: Fits, *, made: bool, unknown: bool) -> None:
        if not (fits(after) if made else after == self._state or (unknown and fits(after))):
            self._wrong(f"{what} to {self._state} made it {after}")

    async def _settled(self, server: Server | None) -> State | None:
        """How the name is after a change: what ``server``, which has answered, says; else what the catalog does."""
        if server is not None and (state := await look(server, self._name)) is not None:
            return state
        deadline = time.monotonic() + PATIENCE
        await asyncio.sleep(LAST_WORDS)
        while time.monotonic() < deadline:
            if (state := await look_into_catalog(self._random.choice(self._site.servers), self._name)) is not None:
                return state
            await asyncio.sleep(0.1)
        self._site.ledger.lost.append(f"no server told what {self._name} is within {PATIENCE:g} s")
        return None

    async def _go_on(self, after: State | None, server: Server, answered: float | None) -> None:
        """Take ``after`` for what is so, and see that every server serves it; ``answered`` is when it was changed."""
        if after is None:
            return
        self._state = after
        servers = self._site.servers
        await asyncio.gather(*(self._seen(other, None if other is server else answered) for other in servers))
        for other in servers:  # once all have seen it: what an answer takes is not what seeing it took
            await self._ask(other)

    async def _seen(self, server: Server, answered: float | None) -> None:
        """Wait until a server sees the change that was ``answered`` at that time, if that is to be measured."""
        began = time.monotonic()
        while (found := await look(server, self._name)) != self._state:
            if time.monotonic() - began > PATIENCE:
                self._wrong(f"{server.name} says {found} {PATIENCE:g} s after it was changed to {self._state}")
                return
            await asyncio.sleep(0.02)
        if answered is None or self._site.ledger.disturbed(answered, server.name):
            return
        seconds = time.monotonic() - answered
        self._site.ledger.seen.append(seconds)
        if seconds > SEEN_LIMIT:
            self._wrong(f"{server.name} saw a change of it after {seconds:.1f} s")

    async def _ask(self, server: Server) -> None:
        """From now on the name is answered by what is live there, or by its canary."""
        for _ in range(ASKED if self._state.canaries else 1 if self._state.live is not None else 0):
            reply = await settle(self._site, server, self._name, self._random.choice(self._site.references.answers))
            allowed = {f"{self._name}@{number}" for number in self._state.answering}
            if reply.code == "model_not_found":
                self._site.ledger.lost.append(f"{self._name} was not found at {server.name} although it is live")
            elif not reply.problem and reply.version not in allowed:
                self._wrong(f"{reply.version} answered at {server.name}, after it was changed to {self._state}")
            elif not reply.problem and self._state.canaries:
                is_canary = reply.version != f"{self._name}@{self._state.live}"
                self._site.ledger.counts["answers of canaries" if is_canary else "answers beside canaries"] += 1

    @staticmethod
    def _is_one_more(before: State, now: State) -> bool:
        """Whether ``now`` has what was there and at most one more, with a number that was not given out."""
        new = now.versions - before.versions
        return before.versions <= now.versions and len(new) <= 1 and all(n > max(before.versions) for n in new)

    def _wrong(self, what: str) -> None:
        self._site.ledger.wrong.append(f"{self._name}: {what}")


def _form(content: bytes) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", content, filename="adapter.zip")
    return form


def _is_open(status: int, body: Any) -> bool:
    """Whether a change that was answered so may have been made all the same."""
    return code_of(status, body) in (None, "catalog_unavailable")
