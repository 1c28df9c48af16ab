"""Tensors that many adapters have in common, once in memory: random factors of one seed, say."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from adapters.ops import Adapter


def content_digest(tensor: Tensor) -> str:
    """Hex SHA-256 of a tensor on the CPU: of its numbers, type and shape."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class SharedContent:
    """What was placed of the tensors that adapters say others may have too, as long as an adapter has it.

    May be used in any thread.
    """

    def __init__(self) -> None:
        self._placed: WeakValueDictionary[str, Tensor] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._placed)

    def place(self, adapter: Adapter, place: Callable[[Tensor], Tensor]) -> tuple[Adapter, dict[str, int]]:
        """``adapter`` with every tensor placed, but those that are there already; bytes of the shared by digest."""
        digests = {id(tensor): content_digest(tensor) for tensor in adapter.shared()}
        nbytes: dict[str, int] = {}

        def once(tensor: Tensor) -> Tensor:
            digest = digests.get(id(tensor))
            if digest is None:
                return place(tensor)
            with self._lock:
                found = self._placed.get(digest)
                if found is None:
                    found = self._placed[digest] = place(tensor)
            nbytes[digest] = found.nbytes
            return found

        return adapter.map(once), nbytes
