"""Output tokens to text, as they come: whole characters only, and never a part of a stop string.

Decodes a small window of tokens again at each step. ``tokenizers.DecodeStream`` was measured and not taken: after
bytes that are not UTF-8 it stays silent for good on byte-fallback tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.text.tokenizer import TextProcessor

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6  # tokens decoded before the new ones, so that spacing comes out as inside a text
MAX_WINDOW = 64  # tokens without a clean end before they are shown as they are


class IncrementalDecoder:
    """Turns tokens into text one by one. The pieces, joined, are the text of all tokens after ``context``."""

    def __init__(self, text: TextProcessor, context: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._text = text
        self._skip = skip_special_tokens
        self._window = self._clean_tail(context)
        self._known = len(self._window)  # tokens of the window whose text is out
        self._shown = len(self._decode(self._window))  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes: empty while a character is incomplete."""
        self._window.append(token_id)
        decoded = self._decode(self._window)
        if decoded.endswith(REPLACEMENT) and len(self._window) < MAX_WINDOW:
            stable = len(decoded) - min(3, len(decoded) - len(decoded.rstrip(REPLACEMENT)))
            piece = decoded[self._shown : stable]
            self._shown = max(self._shown, stable)
            return piece
        piece = decoded[self._shown :]
        if not piece and len(self._window) < MAX_WINDOW:
            return ""  # a special token: it is no context to take spacing from
        del self._window[: self._known]
        self._known = len(self._window)
        self._shown = len(self._decode(self._window))
        return piece

    def flush(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character."""
        decoded = self._decode(self._window)
        piece, self._shown = decoded[self._shown :], len(decoded)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._text.decode(ids, skip_special_tokens=self._skip)

    def _clean_tail(self, context: Sequence[int]) -> list[int]:
        """The end of ``context``; nothing of it where it ends inside a character."""
        tail = list(context[-CONTEXT_TOKENS:])
        return [] if self._decode(tail).endswith(REPLACEMENT) else tail


class StopFinder:
    """Finds the first stop string in a text that comes in pieces, whatever the pieces are.

    The match that ends first wins, the longest of those that end together; text that may still become a match is
    held back.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that may be shown now. Sets ``stopped`` when a stop string is complete; no text comes after it."""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:
            end, negative_length = min(found)
            self.stopped, self._held = True, ""
            return text[: end if self._include else end + negative_length]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class OutputText:
    """The text of one output: decoder and stop strings together, and where each token's text begins.

    Stop strings are looked for only after ``min_tokens`` tokens.
    """

    def __init__(self, decoder: IncrementalDecoder, stops: StopFinder, *, min_tokens: int = 0) -> None:
        self._decoder = decoder
        self._stops = stops
        self._min_tokens = min_tokens
        self._decoded = 0
        self._count = 0
        self.length = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stops.stopped

    def push(self, token_ids: Sequence[int]) -> tuple[str, list[int]]:
        """The text to show, and for each token consumed the offset of its text. Fewer than given when stopped."""
        pieces, offsets = [], []
        for token_id in token_ids:
            offsets.append(self._decoded)
            piece = self._decoder.push(token_id)
            self._decoded += len(piece)
            self._count += 1
            pieces.append(self._search(piece))
            if self.stopped:
                break
        return self._emit(pieces), offsets

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
