"""Output tokens to text, as they come: whole characters only, and never a part of a stop string.

The text is the bytes that ``token_spelling`` gives each token, read as UTF-8. ``tokenizers.DecodeStream`` was measured
and not taken: after bytes that are not UTF-8 it stays silent for good on byte-fallback tokenizers.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import NamedTuple

from bases.token_spelling import CONTINUATION, first_chars
from server.text.tokenizer import TextProcessor

_Utf8 = codecs.getincrementaldecoder("utf-8")


class PlacedToken(NamedTuple):
    """A token in a text: what it stands behind (see ``TokenSpelling``), its bytes there, and its characters' places.

    A special token that is left out has no bytes. The characters are those that the token completes.
    """

    before: int | None
    spelt: bytes
    offset: int
    end: int


class IncrementalDecoder:
    """Turns tokens into text one by one. The pieces, joined, are the text of all tokens after ``context``.

    Special tokens are skipped if told so, but for those ``shown``.
    """

    def __init__(
        self,
        text: TextProcessor,
        context: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: Collection[int] = (),
    ) -> None:
        self._spelling = text.spelling
        self._skip, self._shown = skip_special_tokens, shown
        self._utf8 = _Utf8("replace")
        self.before = self._spelling.end_of(context, skip_special_tokens=skip_special_tokens)
        self.chars = 0

    def spell(self, token_id: int) -> bytes:
        """The bytes that ``token_id`` would write next."""
        return self._spelling.spell(token_id, self.before) if self._shows(token_id) else b""

    def _shows(self, token_id: int) -> bool:
        return token_id in self._shown or self._spelling.shows(token_id, skip_special_tokens=self._skip)

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes: empty while a character is incomplete."""
        return self.place(token_id)[0]

    def place(self, token_id: int) -> tuple[str, PlacedToken]:
        """Like ``push``, and where the token stands in the text so far."""
        before, broken, spelt = self.before, "", b""
        if self._shows(token_id):
            spelt = self._spelling.spell(token_id, before)
            self.before = self._spelling.after(token_id)
        if spelt and not spelt.startswith(CONTINUATION):  # what came before will never be a character
            broken = self._utf8.decode(b"", final=True)
        offset, piece = self.chars + len(broken), broken + self._utf8.decode(spelt)
        self.chars += len(piece)
        return piece, PlacedToken(before, spelt, offset, self.chars)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character."""
        return self._utf8.decode(b"", final=True)


class _Matcher:
    """How much of one stop string the text ends in. A character costs the same whatever came before (Knuth, Morris,
    Pratt 1977): texts and stop strings are a client's to choose.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.size = 0  # characters of ``stop`` that the text ends in
        self._borders = [0]  # by size less 1: how much of ``stop`` its beginning of that size ends in, itself aside
        for char in stop[1:]:
            self._borders.append(self._longer(self._borders[-1], char))

    def push(self, char: str) -> bool:
        """Whether ``char`` completes the stop string."""
        self.size = self._longer(self.size, char)
        return self.size == len(self.stop)

    def _longer(self, size: int, char: str) -> int:
        while size and self.stop[size] != char:
            size = self._borders[size - 1]
        return size + (self.stop[size] == char)


class StopFinder:
    """Finds the first stop string in a text that comes in pieces, whatever the pieces are.

    The match that ends first wins, the longest of those that end together; text that may still become a match is
    held back.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._matchers = [_Matcher(stop) for stop in dict.fromkeys(stops) if stop]
        self._first = {matcher.stop[0] for matcher in self._matchers}
        self._include = include
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete; no text comes after it."""
        return self.found is not None

    def push(self, piece: str) -> str:
        """The text that may be shown now. Sets ``found`` to the stop string that is complete."""
        if not self._held and self._first.isdisjoint(piece):
            return piece
        text = self._held + piece
        for end, char in enumerate(piece, len(self._held) + 1):
            found = [matcher.stop for matcher in self._matchers if matcher.push(char)]
            if found:
                self.found, self._held = max(found, key=len), ""
                return text[: end if self._include else end - len(self.found)]
        keep = max((matcher.size for matcher in self._matchers), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


class OutputText:
    """The text of one output: decoder and stop strings together, and where each token stands in it.

    Stop strings are looked for only after ``min_tokens`` tokens.
    """

    def __init__(self, decoder: IncrementalDecoder, stops: StopFinder, *, min_tokens: int = 0) -> None:
        self._decoder = decoder
        self._stops = stops
        self._min_tokens = min_tokens
        self._count = 0
        self.length = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stops.stopped

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.found

    def push(self, token_ids: Sequence[int]) -> tuple[str, list[PlacedToken]]:
        """The text to show, and where each token consumed stands. Fewer than given when stopped."""
        pieces, places = [], []
        for token_id in token_ids:
            piece, place = self._decoder.place(token_id)
            self._count += 1
            pieces.append(self._search(piece))
            places.append(place)
            if self.stopped:
                break
        return self._emit(pieces), places

    def end(self) -> PlacedToken:
        """The place of a token that ends the text, and writes nothing."""
        return PlacedToken(self._decoder.before, b"", self.length, self.length)

    def shows(self, place: PlacedToken) -> bool:
        """Whether all characters of a token are out; those of a stop string never are."""
        return place.offset < self.length and place.end <= self.length

    def cut(self, place: PlacedToken) -> PlacedToken | None:
        """A token of a text that a stop string ended, without what of it is not in the text; None when all is not."""
        if place.offset >= self.length:
            return None
        if place.end <= self.length:
            return place
        return place._replace(spelt=first_chars(place.spelt, self.length - place.offset), end=self.length)

    def finish(self) -> str:
        """The rest of the text, at the end of the output."""
        if self.stopped:
            return ""
        shown = self._search(self._decoder.flush())
        return self._emit([shown, "" if self.stopped else self._stops.flush()])

    def _search(self, piece: str) -> str:
        return self._stops.push(piece) if self._count > self._min_tokens else piece

    def _emit(self, pieces: list[str]) -> str:
        out = "".join(pieces)
        self.length += len(out)
        return out
