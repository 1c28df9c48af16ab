"""What the routes work with, made by ``server.making`` and kept on the application: no globals. Asyncio-confined.

A route states what it uses: single fields of the context, or all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from adapters.package.sentence_model import SentenceModel
from server.adapter_key import AdapterKey
from server.api.access import Access
from server.api.limits import RateLimiter
from server.api.responses.background import BackgroundResponses
from server.api.shadow import Shadows
from server.api.turns import Turns
from server.batches.service import Batches
from server.catalog.canary import CanaryControl
from server.catalog.canary_watch import CanaryWatch
from server.catalog.kept_answers import KeptAnswers
from server.catalog.key_manager import KeyManager
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.registry import Registry
from server.catalog.residency import Residency
from server.catalog.sources import Sources
from server.catalog.trail import Trail
from server.engine.ipc.client import EngineClient
from server.errors import EngineUnavailableError, QueueFullError
from server.files.library import FileLibrary
from server.files.uploads import Uploads
from server.fine_tuning.service import FineTuning
from server.metrics import Metrics
from server.settings import ServerConfig
from server.text.grammar_maker import GrammarMaker
from server.text.tokenizer import TextProcessor
from server.traces import Traces


class Place:
    """The place of one accepted sequence: active until the engine has ended it, then unread until its reader has."""

    def __init__(self, admission: Admission, cut: Callable[[], None], holder: Hashable = None) -> None:
        self._admission = admission
        self.cut = cut
        self.holder = holder

    def ended(self) -> None:
        """The engine works on it no more; again, or after ``left``: nothing."""
        self._admission._to_unread(self)

    def left(self) -> None:
        """Nothing of it is kept any more; again: nothing."""
        self._admission._leave(self)


class Admission:
    """Counts accepted sequences up to ``limit``; closed while loading (until ``open``) and while draining.

    An eighth more is kept for holders that have no more than that themselves: one who fills the rest shuts out nobody.

    A client that does not read takes no place from others: what the engine has ended is counted apart. Of such
    sequences ``limit`` are kept as well; beyond that the one that has been waiting longest is ``cut``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active: set[Place] = set()
        self._unread: dict[Place, None] = {}  # oldest first
        self.requests = 0  # whose answers are being made
        self._closed = "the server is loading the base; try again"
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Sequences that the engine has not ended."""
        return len(self._active)

    @property
    def unread(self) -> int:
        """Sequences that the engine has ended and their readers have not."""
        return len(self._unread)

    @property
    def closed_because(self) -> str:
        """Why nothing is accepted; empty while open."""
        return self._closed

    def open(self) -> None:
        """Accept from now on."""
        self._closed = ""

    def close(self, reason: str) -> None:
        """Accept nothing more; what runs goes on."""
        self._closed = reason

    @contextmanager
    def admit(
        self, sequences: int, cut: Callable[[], None] = lambda: None, holder: Hashable = None
    ) -> Iterator[list[Place]]:
        """Places for ``sequences``, left with the block; ``cut`` is called where one of them has to be given up.

        Raises QueueFullError, or EngineUnavailableError while closed.
        """
        if self._closed:
            raise EngineUnavailableError(self._closed)
        if self.active + sequences > self._limit and not self._is_kept_for(holder, sequences):
            raise QueueFullError(
                f"{self.active} sequences are running or waiting, the limit is {self._limit}; try later"
            )
        places = [Place(self, cut, holder) for _ in range(sequences)]
        self._active.update(places)
        self._idle.clear()
        self.requests += 1
        try:
            yield places
        finally:
            self.requests -= 1
            for place in places:
                place.left()

    async def idle(self) -> None:
        """Wait until no accepted sequence is left, and none that is unread."""
        await self._idle.wait()

    def _is_kept_for(self, holder: Hashable, sequences: int) -> bool:
        kept = self._limit // 8
        if holder is None or self.active + sequences > self._limit + kept:
            return False
        return sum(place.holder == holder for place in self._active) + sequences <= kept

    def _to_unread(self, place: Place) -> None:
        if place not in self._active:
            return
        self._active.remove(place)
        self._unread[place] = None
        if len(self._unread) > self._limit:
            oldest = next(iter(self._unread))
            self._leave(oldest)
            oldest.cut()

    def _leave(self, place: Place) -> None:
        self._active.discard(place)
        self._unread.pop(place, None)
        if not self._active and not self._unread:
            self._idle.set()


@dataclass(frozen=True, eq=False)
class ServerContext:
    """One server. ``base_name`` is the name clients use for the base, ``base_root`` what it was loaded from.

    ``sentence_model`` is what sentence-transformers wrote beside the base, in its directory ``base_dir``.
    """

    config: ServerConfig
    base_name: str
    base_root: str
    base_dir: Path
    engine: EngineClient
    registry: Registry
    lifecycle: AdapterLifecycle
    sources: Sources
    keys: KeyManager
    trail: Trail
    files: FileLibrary
    uploads: Uploads
    answers: KeptAnswers
    fine_tuning: FineTuning
    background: BackgroundResponses
    batches: Batches
    text: TextProcessor
    metrics: Metrics
    admission: Admission
    traffic: CanaryControl
    watch: CanaryWatch
    shadows: Shadows
    traces: Traces
    version: str
    sentence_model: SentenceModel | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    turns: Turns = field(default_factory=Turns)
    limiter: RateLimiter = field(default_factory=RateLimiter)
    grammars: GrammarMaker = field(default_factory=GrammarMaker)

    @property
    def access(self) -> Access:
        """Which part of the API asks for a key."""
        return Access(self.config, self.keys.ring)

    @property
    def residency(self) -> Residency:
        """Which adapters are in memory."""
        return self.lifecycle.residency

    def vocab_size(self, adapter: AdapterKey | None) -> int:
        """How many token ids an adapter knows."""
        own = self.registry.leased(adapter).vocab_size if adapter is not None else None
        return own or self.engine.info.vocab_size

    def text_of(self, adapter: AdapterKey | None) -> TextProcessor:
        """The tokenizer of an adapter: the base's, with those tokens that the adapter brought and has rows for.

        It writes conversations as the adapter's own template says, where that is served.
        """
        if adapter is None:
            return self.text
        version, size = self.registry.leased(adapter), self.vocab_size(adapter)
        tokens = tuple(token for token in version.tokens if token.id < size)
        return self.text.with_tokens(tokens).with_chat(version.chat)

    def end_token_ids(self, adapter: AdapterKey | None) -> tuple[int, ...]:
        """What ends an output of an adapter beside what ends the base's."""
        return () if adapter is None else self.registry.leased(adapter).chat.end_token_ids


async def get_context(request: Request) -> ServerContext:
    """The context of the application that serves ``request``."""
    context = request.app.state.context
    assert isinstance(context, ServerContext)
    return context


ContextDep = Annotated[ServerContext, Depends(get_context)]


def _field(name: str) -> Any:
    async def get(context: ContextDep) -> Any:
        return getattr(context, name)

    return Depends(get)


EngineDep = Annotated[EngineClient, _field("engine")]
KeysDep = Annotated[KeyManager, _field("keys")]
BatchesDep = Annotated[Batches, _field("batches")]
FineTuningDep = Annotated[FineTuning, _field("fine_tuning")]
FilesDep = Annotated[FileLibrary, _field("files")]
UploadsDep = Annotated[Uploads, _field("uploads")]
TrailDep = Annotated[Trail, _field("trail")]
LifecycleDep = Annotated[AdapterLifecycle, _field("lifecycle")]
MetricsDep = Annotated[Metrics, _field("metrics")]
AdmissionDep = Annotated[Admission, _field("admission")]
