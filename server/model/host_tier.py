"""Adapters in host memory that have been read and checked, for a device that has its own memory.

What leaves the device can come back from here without its files: by its content, so that it is what it was.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from server.model.prepared import PreparedAdapter


class HostTier:
    """The most recently used adapters, as long as they weigh no more than ``max_bytes``. For any thread.

    With ``pinned`` they lie where a GPU fetches them from without a copy in between.
    """

    def __init__(self, max_bytes: int, *, pinned: bool = False) -> None:
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._adapters: dict[str, PreparedAdapter] = {}  # least recently used first
        self._nbytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def nbytes(self) -> int:
        """What all weigh."""
        return self._nbytes

    def get(self, digest: str) -> PreparedAdapter | None:
        """The adapter of that content, if it is here."""
        with self._lock:
            if (found := self._adapters.pop(digest, None)) is not None:
                self._adapters[digest] = found
            return found

    def put(self, digest: str, prepared: PreparedAdapter) -> PreparedAdapter:
        """Keep an adapter whose tensors are on the CPU, unless it alone is too large; returns it as it is kept."""
        weight = prepared.adapter.nbytes
        if weight > self._max_bytes:
            return prepared
        if self._pinned:
            prepared = replace(prepared, adapter=prepared.adapter.map(torch.Tensor.pin_memory))
        with self._lock:
            if (old := self._adapters.pop(digest, None)) is not None:
                self._nbytes -= old.adapter.nbytes
            self._adapters[digest] = prepared
            self._nbytes += weight
            while self._nbytes > self._max_bytes:
                oldest = next(iter(self._adapters))
                self._nbytes -= self._adapters.pop(oldest).adapter.nbytes
        return prepared
