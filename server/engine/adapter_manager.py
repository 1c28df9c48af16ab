"""Brings adapters in and out of the runner while requests run.

A loader thread prepares packages; the stepping thread places, verifies and admits them, one stage between two steps,
or a slice of one while requests run. An adapter leaves when it was asked to and its last request has ended. Knows
neither tokens nor batches.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapters.checkpoints import held_up_by
from adapters.combining import Member
from adapters.errors import AdapterError, PackageChangedError, PackageError
from adapters.ops import Adapter
from adapters.ops.embedding import EmbedRows, HeadRows
from server.adapter_key import AdapterKey
from server.engine.executor import Runner
from server.engine.messages import AdapterFailed, AdapterLoaded, AdapterUnloaded
from server.engine.pace import Pace
from server.engine.scheduler import AdapterSlot, Scheduler
from server.engine.tried import TriedContents
from server.engine.verification import AdapterVerification
from server.errors import ADAPTER_MEMORY, BudgetError
from server.memory import give_back
from server.model.prepared import PreparedAdapter, VerificationPlan

LOADER_NICENESS = 5  # a quarter of a core that a step wants as well
Resident = tuple[AdapterKey, Adapter]


class Loading:
    """The load of ``key``, whose package the loader thread turns into ``future``.

    Unless it ``is_tried`` it is verified beside ``residents``, asked for when that begins. To be closed in the end, or
    to give up.
    """

    def __init__(
        self,
        key: AdapterKey,
        future: Future[PreparedAdapter],
        runner: Runner,
        scheduler: Scheduler,
        *,
        residents: Callable[[], Sequence[Resident]],
        allow_noop: bool,
        max_bytes: int,
        is_tried: bool,
    ) -> None:
        self.future = future
        self._key, self._allow_noop = key, allow_noop
        self._runner, self._scheduler = runner, scheduler
        self._residents = residents
        self._max_bytes = max_bytes
        self._is_tried = is_tried
        self._stages = self._begin()
        self._until = math.inf
        self._verification: AdapterVerification | None = None

    def advance(self, until: float = math.inf) -> tuple[Adapter, AdapterLoaded] | None:
        """Take one stage, if it can be done ``until`` then (monotonic); the adapter and the answer once all are done.

        Raises what the package, its verification or the runner have to say; nothing is left behind then.
        """
        self._until = until
        return next(self._stages)

    def finish_pass(self) -> None:
        """End the pass of the verification that is under way, if any: what it uses may go then."""
        if self._verification is not None:
            self._verification.finish_pass()

    def close(self) -> None:
        """Give up, or let go of what it held."""
        self._stages.close()

    def _begin(self) -> Generator[tuple[Adapter, AdapterLoaded] | None, None, None]:
        prepared = self.future.result()
        adapter, warnings = prepared.adapter, list(prepared.warnings)
        started = time.monotonic()
        check_content(self._key, prepared)
        self._check_length(adapter)
        self._check_budget(adapter)
        self._runner.install(self._key, adapter)
        try:
            placed = time.monotonic()
            if prepared.plan is not None and not self._is_tried:
                with closing(self._verify(adapter, prepared.plan)) as verification:
                    yield None
                    while not verification.advance(self._until):
                        yield None
                warnings += dict.fromkeys(verification.warnings)
            verified = time.monotonic()
            self._admit(adapter)
        except Exception:
            self._runner.remove(self._key)
            raise
        copying = prepared.seconds.get("copy", 0.0) + placed - started + time.monotonic() - verified
        yield (
            adapter,
            AdapterLoaded(
                key=self._key,
                kind=adapter.kind,
                nbytes=adapter.nbytes,
                shared=dict(prepared.shared),
                num_virtual_tokens=adapter.num_virtual_tokens,
                vocab_size=adapter.vocab_size,
                token_ids=_token_ids(adapter, self._runner.vocab_size),
                warnings=warnings,
                seconds={**prepared.seconds, "copy": copying, "try": verified - placed},
            ),
        )

    def _verify(self, adapter: Adapter, plan: VerificationPlan) -> AdapterVerification:
        self._verification = AdapterVerification(
            (self._key, adapter),
            plan,
            self._runner,
            self._scheduler,
            others=self._residents,
            allow_noop=self._allow_noop,
        )
        return self._verification

    def _admit(self, adapter: Adapter) -> None:
        """Give a prefix adapter its blocks and let requests use it."""
        blocks = self._reserve(adapter) if adapter.prefix is not None else []
        try:
            if blocks:
                self._runner.write_prefix(self._key, blocks)
        except Exception:
            self._scheduler.blocks.release(blocks)
            raise
        slot = AdapterSlot(
            adapter.num_virtual_tokens, blocks, adapter.vocab_size, adapter.invocation_tokens, adapter.has_exact_rows
        )
        self._scheduler.add_adapter(self._key, slot)

    def _check_budget(self, adapter: Adapter) -> None:
        resident = self._runner.adapter_bytes
        if self._max_bytes and resident + self._runner.weight(adapter) > self._max_bytes:
            raise BudgetError(
                f"{self._key} takes {adapter.nbytes / 1e6:.1f} MB of memory, and resident adapters take "
                f"{resident / 1e6:.1f} of {self._max_bytes / 1e6:.1f} MB (--max-adapter-gb). Delete adapters or "
                "candidates, or raise it; a replaced version counts until its last request has ended",
                code=ADAPTER_MEMORY,
                nbytes=adapter.nbytes,
            )

    def _check_length(self, adapter: Adapter) -> None:
        count, limit = adapter.num_virtual_tokens, self._runner.max_model_len
        if count > limit - 2:  # a token of prompt, a token of output
            raise AdapterError(
                f"The adapter has {count} virtual tokens, but sequences are limited to {limit} positions "
                "(--max-model-len), which leaves no room for a prompt."
            )

    def _reserve(self, adapter: Adapter) -> list[int]:
        scheduler = self._scheduler
        blocks = scheduler.reserve(scheduler.blocks.blocks_for(adapter.num_virtual_tokens))
        if blocks is None:
            raise AdapterError(
                f"The prefix of {adapter.num_virtual_tokens} virtual tokens does not fit: prefixes may hold at most "
                f"half of the {scheduler.blocks.num_blocks} KV blocks. Remove other prefix adapters or raise "
                "--kv-cache-gb."
            )
        return blocks


def check_content(key: AdapterKey, prepared: PreparedAdapter) -> None:
    """What was read must be what the key names: files may change between two loads of a version."""
    if prepared.digest not in (None, key.digest):
        raise PackageChangedError(
            f"its stored files are not those that were uploaded: their digest is {prepared.digest[:12]}, "
            f"not {key.digest[:12]}"
        )


def _token_ids(adapter: Adapter, base_size: int) -> list[int]:
    """Ids of the base's vocabulary whose rows the adapter brings, the highest: what no tokenizer names is there."""
    tables = [op.ids for ops in adapter.ops.values() for op in ops if isinstance(op, EmbedRows | HeadRows)]
    found = {int(token) for ids in tables for token in ids[ids < base_size].tolist()}
    return sorted(found)[-_MAX_TOKEN_IDS:]


logger = logging.getLogger(__name__)
_MAX_TOKEN_IDS = 4096
AdapterEvent = AdapterLoaded | AdapterFailed | AdapterUnloaded


@dataclass(eq=False)
class _Entry:
    """One adapter: on its way in (``loading`` set), or resident; ``leaving`` when it is to go as soon as it can."""

    loading: Loading | None
    adapter: Adapter | None = None
    loaded: AdapterLoaded | None = None
    leaving: bool = False


def _give_way() -> None:
    """Let what computes steps have the cores first: on Linux each thread has a niceness of its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICENESS)


class AdapterManager:
    """The adapters of an engine; what happens to them is told in ``events``.

    Together they take at most ``max_bytes`` of memory (0: whatever there is). What was ``tried`` answers as it did.
    """

    def __init__(
        self, runner: Runner, scheduler: Scheduler, *, max_bytes: int = 0, tried: TriedContents | None = None
    ) -> None:
        self.events: list[AdapterEvent] = []
        self._runner = runner
        self._scheduler = scheduler
        self._max_bytes = max_bytes
        self._entries: dict[AdapterKey, _Entry] = {}
        self._arriving: dict[AdapterKey, _Entry] = {}  # those of them that are on their way in
        self._tried = tried or TriedContents()
        self._loader = ThreadPoolExecutor(1, "adapter-loader", initializer=_give_way)

    @property
    def has_work(self) -> bool:
        """Whether there are events to collect, or adapters on their way in."""
        return bool(self.events) or self._on_their_way()

    @property
    def num_resident(self) -> int:
        """Adapters that requests can use now."""
        return len(self._entries) - len(self._arriving)

    def load(self, key: AdapterKey, *paths: Path, allow_noop: bool = False) -> None:
        """Start loading, answered by AdapterLoaded or AdapterFailed. A load already under way is joined.

        ``paths`` is where its package is, or those of its members are.
        """
        entry = self._entries.get(key)
        if entry is None:
            here = {version: self._entries[version] for version in key.versions if version in self._entries}
            future = self._loader.submit(self._prepare, key, paths, here)
            self._entries[key] = self._arriving[key] = _Entry(
                Loading(
                    key,
                    future,
                    self._runner,
                    self._scheduler,
                    residents=self._residents,
                    allow_noop=allow_noop,
                    max_bytes=self._max_bytes,
                    is_tried=key.digest in self._tried,
                )
            )
        elif entry.leaving:
            self.events.append(AdapterFailed(key, AdapterError.code, f"{key} is being removed; load it again later."))
        elif entry.loaded is not None:
            self.events.append(entry.loaded)

    def wait(self, timeout: float) -> None:
        """Sleep until the loader thread has finished something, for at most ``timeout`` seconds."""
        reading = [entry.loading.future for entry in self._arriving.values() if entry.loading is not None]
        if reading:
            wait(reading, timeout=timeout, return_when=FIRST_COMPLETED)

    def install_prepared(self, seconds: float = math.inf) -> list[AdapterKey]:
        """Take adapters on their way in further; returns the keys that are resident now, or failed.

        One is verified after the other, a stage at a time, or for about ``seconds`` if there are requests to compute.
        Blocked requests of those keys must then be queued or ended, and ``settle`` called.
        """
        until = time.monotonic() + seconds if self._scheduler.has_work else math.inf
        ended = []
        for key, entry in list(self._arriving.items()):
            if entry.loading is not None and entry.loading.future.done():
                if not self._advance(key, entry, until):
                    break
                ended.append(key)
        if ended and not self._on_their_way():
            give_back()  # of what loading them took
        return ended

    def _on_their_way(self) -> bool:
        return bool(self._arriving)

    def unload(self, key: AdapterKey) -> None:
        """Let an adapter go when its last request has ended, answered by AdapterUnloaded."""
        entry = self._entries.get(key)
        if entry is None:
            self.events.append(AdapterUnloaded(key))
        else:
            entry.leaving = True
            self.settle(key)

    def knows(self, key: AdapterKey) -> bool:
        """Whether requests may come for an adapter: it is resident, or on its way in."""
        return key in self._entries

    def settle(self, key: AdapterKey) -> None:
        """Drop an adapter that is to leave, once it is loaded and the scheduler has no request of it."""
        entry = self._entries.get(key)
        if entry is not None and entry.leaving and entry.loaded is not None and not self._scheduler.users(key):
            self._finish_pass()
            self._scheduler.remove_adapter(key)
            self._runner.remove(key)
            del self._entries[key]
            self.events.append(AdapterUnloaded(key))
            give_back()

    def close(self) -> None:
        """Stop the loader thread; loads under way are not waited for."""
        for entry in self._arriving.values():
            if entry.loading is not None:
                entry.loading.close()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def check_integrity(self) -> None:
        """Raise AssertionError unless requests, adapters and slots match."""
        used = {request.adapter for request in self._scheduler.requests.values()} - {None}
        assert used <= set(self._entries), "requests are of adapters that are here, or on their way in"
        resident = {key for key, entry in self._entries.items() if entry.loaded is not None}
        assert resident == set(self._scheduler.slots) - {None}
        for key, entry in self._entries.items():
            assert (entry.loading is None) != (entry.loaded is None), "an adapter is either loading or resident"
            assert (entry.loading is not None) == (key in self._arriving)
            assert not (entry.leaving and entry.loaded and key not in used), "an idle leaving adapter is gone"

    def _residents(self) -> list[Resident]:
        """A resident adapter, for another to be verified beside it."""
        return [(key, entry.adapter) for key, entry in self._entries.items() if entry.adapter is not None][-1:]

    def _finish_pass(self) -> None:
        for entry in self._arriving.values():
            if entry.loading is not None:
                entry.loading.finish_pass()

    def _prepare(self, key: AdapterKey, paths: Sequence[Path], here: Mapping[AdapterKey, _Entry]) -> PreparedAdapter:
        """In the loader thread. ``here`` are those that are combined, as far as they are resident."""
        with held_up_by(Pace(lambda: self._scheduler.has_work)):
            if not key.members:
                return self._runner.prepare(paths[0], key.digest)
            return self._combine(key, paths, here)

    def _combine(self, key: AdapterKey, paths: Sequence[Path], here: Mapping[AdapterKey, _Entry]) -> PreparedAdapter:
        """A combination of what is resident, and, for want of that, of what is read for it."""
        members, shared = [], {}
        for member, path in zip(key.members, paths, strict=True):
            version = member.key
            entry = here.get(version)
            if entry is not None and entry.adapter is not None and entry.loaded is not None:
                adapter, its_shared = entry.adapter, entry.loaded.shared
            else:
                prepared = self._runner.prepare(path, version.digest)
                check_content(version, prepared)
                adapter, its_shared = prepared.adapter, dict(prepared.shared)
            members.append(Member(str(version), adapter, member.weight))
            shared.update(its_shared)
        return replace(self._runner.combine(members), shared=shared)

    def _advance(self, key: AdapterKey, entry: _Entry, until: float) -> bool:
        """Take one stage of a load; True when the adapter is resident, or failed and gone."""
        assert entry.loading is not None
        try:
            done = entry.loading.advance(until)
        except Exception as error:  # noqa: BLE001 - a bad package must never end the stepping thread
            del self._entries[key], self._arriving[key]
            self.events.append(_failure(key, error))
            if entry.leaving:
                self.events.append(AdapterUnloaded(key))
            return True
        if done is None:
            return False
        entry.adapter, entry.loaded = done
        entry.loading.close()  # what it was verified by is in memory until then
        entry.loading = None
        del self._arriving[key]
        if not key.members:  # there is no end of those
            self._tried.add(key.digest)
        self.events.append(entry.loaded)
        return True


def _failure(key: AdapterKey, error: Exception) -> AdapterFailed:
    if isinstance(error, BudgetError):
        return AdapterFailed(key, error.code, str(error), error.nbytes)
    if isinstance(error, AdapterError):
        return AdapterFailed(key, error.code, str(error))
    if isinstance(error, OSError):  # of the disk that the package lies on
        return AdapterFailed(key, PackageError.code, f"its files cannot be read: {error.strerror or 'unknown error'}")
    logger.error("adapter %s failed to load", key, exc_info=error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return AdapterFailed(key, ADAPTER_MEMORY, f"there is no memory left for {key}; delete adapters or candidates")
    return AdapterFailed(key, AdapterError.code, "The adapter could not be loaded; the engine's log says why.")
