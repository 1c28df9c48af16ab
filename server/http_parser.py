"""h11 for clients that cannot be trusted: refuses what takes long to parse, and what can be read in two ways.

How much is parsed at once is ``server.connections``'s.
"""

from __future__ import annotations

from typing import Any

import h11
from typing_extensions import override

MAX_HEAD_LINES = 256  # most servers take 100; thousands take a tenth of a second
FREE_CHUNKS = 4096
LEAST_CHUNK_BYTES = 64  # on average, of those beyond: a chunk costs as much as hundreds of bytes, even an empty one


class Parser(h11.Connection):
    """A server's side of a connection. ``is_chunked``: the body that is being received comes in chunks."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.is_chunked = False
        self._chunks = 0
        self._bytes = 0

    @override
    def next_event(self) -> Any:
        """Like h11's; raises RemoteProtocolError also for what h11 would take."""
        if self.their_state is h11.IDLE:
            self._check_lines()
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data) and self.is_chunked:
            self._count(event)
        return event

    def _check_lines(self) -> None:
        head = self.trailing_data[0].partition(b"\r\n\r\n")[0]
        if head.count(b"\n") > MAX_HEAD_LINES:
            raise h11.RemoteProtocolError("too many headers", error_status_hint=431)

    def _begin(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        self.is_chunked = b"transfer-encoding" in names
        if self.is_chunked and b"content-length" in names:  # a proxy may have read another length
            raise h11.RemoteProtocolError("both transfer-encoding and content-length")
        self._chunks = self._bytes = 0

    def _count(self, data: h11.Data) -> None:
        self._bytes += len(data.data)
        self._chunks += data.chunk_start
        if self._chunks > FREE_CHUNKS + self._bytes / LEAST_CHUNK_BYTES:
            raise h11.RemoteProtocolError("too many small chunks")
