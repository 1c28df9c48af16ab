"""Messages waiting to be sent to the API process: the stepping thread never waits for a slow reader.

Knows nothing of sockets. Thread-safe: one side puts, the other takes.
"""

from __future__ import annotations

import threading

from server.engine.coalesce import compact
from server.engine.messages import FromEngine


class Outbox:
    """A queue that never blocks the putter and never drops: beyond ``limit`` messages, steps are joined."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._messages: list[FromEngine] = []
        self._closed = False
        self._changed = threading.Condition()

    def put(self, message: FromEngine) -> None:
        """Queue a message."""
        with self._changed:
            self._messages.append(message)
            if len(self._messages) > self._limit:
                self._messages = compact(self._messages)
            self._changed.notify()

    def close(self) -> None:
        """No message follows; ``take`` still hands out what is queued."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[FromEngine]:
        """Wait for messages and take all; empty means closed and nothing left."""
        with self._changed:
            while not self._messages and not self._closed:
                self._changed.wait()
            messages, self._messages = self._messages, []
            return messages

    def __len__(self) -> int:
        with self._changed:
            return len(self._messages)
