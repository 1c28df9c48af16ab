"""A hold on what a request uses."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from server.adapter_key import AdapterKey


class Lease:
    """A request's hold on the version ``key`` until released; None, the base, is nothing that could go away.

    Of a combination all its versions are held. ``sequences`` of it are running. ``by_name``: it was asked for by its
    name alone. Releasing again does nothing.
    """

    def __init__(self, key: AdapterKey | None, on_release: Callable[[Lease], None], *, by_name: bool = False) -> None:
        self.key = key
        self.by_name = by_name
        self.sequences = 0
        self._on_release: list[Callable[[Lease], None]] | None = [on_release]

    def then(self, on_release: Callable[[Lease], None]) -> None:
        """Have ``on_release`` called as well when it is let go; at once when it was."""
        if self._on_release is None:
            on_release(self)
        elif on_release not in self._on_release:
            self._on_release.append(on_release)

    def release(self) -> None:
        """Let go."""
        callbacks, self._on_release = self._on_release, None
        for on_release in callbacks or ():
            on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
