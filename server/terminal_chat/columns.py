"""What several models answer to the same words: in columns of a terminal, as it comes, or in turn in a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.terminal_chat.client import ChatError, harmless

if TYPE_CHECKING:
    from rich.table import Table

Ask = Callable[[], Iterator[str]]
_REFRESH = 0.1  # seconds


@dataclass
class Column:
    """What one model has answered so far."""

    model: str
    text: str = ""
    error: str = ""
    pieces: int = 0
    first: float | None = None  # seconds until the first piece
    last: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, piece: str) -> None:
        """One more piece, now."""
        self.last = time.monotonic() - self.began
        self.first = self.last if self.first is None else self.first
        self.pieces += 1
        self.text += piece

    @property
    def speed(self) -> str:
        """How fast it came, for a person."""
        if self.first is None:
            return ""
        rest = self.last - self.first
        rate = f", then {(self.pieces - 1) / rest:.0f} pieces/s" if rest > 0 else ""
        return f"first after {self.first * 1e3:.0f} ms{rate}"


def side_by_side(asks: Mapping[str, Ask], *, tty: bool, write: Callable[[str], object]) -> list[Column]:
    """Ask all models at once, show what they answer, and return it when all have ended, or Ctrl-C was pressed.

    What goes wrong with one is in its column, and the others go on.
    """
    columns = [Column(model) for model in asks]
    over = threading.Event()
    threads = [
        threading.Thread(target=_read, args=(column, asks[column.model], over), daemon=True) for column in columns
    ]
    for thread in threads:
        thread.start()
    try:
        _show(columns, threads) if tty else _join(threads)
    except KeyboardInterrupt:
        over.set()
    if tty:
        _print(columns)
    else:
        for column in columns:
            write(f"## {column.model}\n{column.text}\n")
    return columns


def _read(column: Column, ask: Ask, over: threading.Event) -> None:
    try:
        for piece in ask():
            if over.is_set():
                return
            column.add(piece)
    except ChatError as error:
        column.error = str(error)


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _show(columns: Sequence[Column], threads: Sequence[threading.Thread]) -> None:
    """Draw again and again what there is, until all have ended; then it is wiped away."""
    from rich.live import Live

    with Live(_table(columns), transient=True, auto_refresh=False) as live:
        while any(thread.is_alive() for thread in threads):
            time.sleep(_REFRESH)
            live.update(_table(columns), refresh=True)


def _print(columns: Sequence[Column]) -> None:
    from rich.console import Console

    Console().print(_table(columns))


def _table(columns: Sequence[Column]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(Text(column.model), ratio=1)
    table.add_row(
        *(Text(column.error, style="red") if column.error else Text(harmless(column.text)) for column in columns)
    )
    table.add_row(*(Text(column.speed, style="dim") for column in columns))
    return table
