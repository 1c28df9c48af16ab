"""One adapter on its way in: read by the loader thread, placed on the runner, tried out, admitted.

Every stage runs between two steps, on the stepping thread; only reading does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from adapters.errors import AdapterError
from adapters.ops import Adapter
from server.engine.messages import AdapterLoaded
from server.engine.parity_probe import ParityProbe
from server.engine.runner import Runner
from server.engine.scheduler import AdapterSlot, Scheduler
from server.model.prepared import PreparedAdapter, Trial
from server.registry import AdapterKey

Resident = tuple[AdapterKey, Adapter]


class Loading:
    """The load of ``key``, whose package the loader thread turns into ``future``.

    It is tried out beside ``residents``, asked for when the trial begins.
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
    ) -> None:
        self.future = future
        self._key, self._allow_noop = key, allow_noop
        self._runner, self._scheduler = runner, scheduler
        self._residents = residents
        self._stages = self._begin()

    def advance(self) -> tuple[Adapter, AdapterLoaded] | None:
        """Take one stage; the adapter and the answer once requests may use it.

        Raises what the package, the trial or the runner have to say; nothing is left behind then.
        """
        return next(self._stages)

    def _begin(self) -> Iterator[tuple[Adapter, AdapterLoaded] | None]:
        while not self.future.done():
            yield None
        prepared = self.future.result()
        adapter, warnings = prepared.adapter, list(prepared.warnings)
        started = time.monotonic()
        self._check_length(adapter)
        self._runner.install(self._key, adapter)
        try:
            placed = time.monotonic()
            if prepared.trial is not None:
                probe = self._probe(adapter, prepared.trial)
                yield None
                while not probe.advance():
                    yield None
                warnings += dict.fromkeys(probe.warnings)
            tried = time.monotonic()
            self._admit(adapter)
        except Exception:
            self._runner.remove(self._key)
            raise
        copying = prepared.seconds.get("copy", 0.0) + placed - started + time.monotonic() - tried
        yield (
            adapter,
            AdapterLoaded(
                key=self._key,
                kind=adapter.kind,
                nbytes=adapter.nbytes,
                num_virtual_tokens=adapter.num_virtual_tokens,
                vocab_size=adapter.vocab_size,
                warnings=warnings,
                seconds={**prepared.seconds, "copy": copying, "try": tried - placed},
            ),
        )

    def _probe(self, adapter: Adapter, trial: Trial) -> ParityProbe:
        return ParityProbe(
            (self._key, adapter),
            trial,
            self._runner,
            self._scheduler,
            others=self._residents(),
            allow_noop=self._allow_noop,
        )

    def _admit(self, adapter: Adapter) -> None:
        """Give a prefix adapter its blocks and let requests use it."""
        blocks = self._reserve(adapter) if adapter.prefix is not None else []
        try:
            if blocks:
                self._runner.write_prefix(self._key, blocks)
        except Exception:
            self._scheduler.blocks.release(blocks)
            raise
        slot = AdapterSlot(adapter.num_virtual_tokens, blocks, adapter.vocab_size, adapter.invocation_tokens)
        self._scheduler.add_adapter(self._key, slot)

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
