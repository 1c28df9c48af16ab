"""What one token writes into a text: its bytes, and how they read.

Decoders of tokenizers take all tokens at once, and drop the space of the one that begins the text. But for that, and
for the few that look at the token before, each token writes the same bytes wherever it stands: a text is the bytes of
its tokens, joined. This module finds those bytes, so that text, streams and log-probabilities cannot disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

from tokenizers import Tokenizer

INSIDE = -1  # the place after some token, whichever it is; None is the beginning of a text
REPLACEMENT = "\ufffd"
MAX_SPELT = 65536  # tokens remembered, of each tokenizer


class TokenSpelling:
    """Spells the tokens of one tokenizer. ``before`` is the token in front: an id, INSIDE, or None at the beginning."""

    def __init__(self, backend: Tokenizer) -> None:
        decoder = backend.decoder.__getstate__() if backend.decoder else b""
        self._backend = backend
        self._byte_level = b'"ByteLevel"' in decoder
        self._byte_fallback = b'"ByteFallback"' in decoder
        self._looks_back = b'"BPEDecoder"' in decoder  # it writes a word's space with the next word
        self._word_end = json.loads(decoder)["suffix"] if decoder.startswith(b'{"type":"BPEDecoder"') else ""
        self._special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
        self.spell = lru_cache(MAX_SPELT)(self._spell)

    def shows(self, token_id: int, *, skip_special_tokens: bool) -> bool:
        """Whether a token is decoded at all: it is in the vocabulary, and not a special one that is left out."""
        if skip_special_tokens and token_id in self._special:
            return False
        return self._backend.id_to_token(token_id) is not None

    def is_special(self, token_id: int) -> bool:
        """Whether ``skip_special_tokens`` leaves the token out."""
        return token_id in self._special

    def after(self, token_id: int) -> int:
        """The place behind a token, as ``before`` of the next."""
        return token_id if self._looks_back else INSIDE

    def end_of(self, ids: Sequence[int], *, skip_special_tokens: bool) -> int | None:
        """The place behind all of ``ids``; None when none of them is decoded."""
        shown = (i for i in reversed(ids) if self.shows(i, skip_special_tokens=skip_special_tokens))
        last = next(shown, None)
        return None if last is None else self.after(last)

    def spell_all(self, ids: Sequence[int], *, skip_special_tokens: bool) -> Iterator[bytes]:
        """The bytes of the tokens of a whole text that are decoded, in turn."""
        before: int | None = None
        for token_id in ids:
            if self.shows(token_id, skip_special_tokens=skip_special_tokens):
                yield self.spell(token_id, before)
                before = self.after(token_id)

    def table(self, size: int) -> list[bytes]:
        """What each of the first ``size`` ids writes amid a text; nothing where there is no token.

        Tokenizers that write a word's space with the next word are taken to write it with the word itself.
        """
        if not self._looks_back:
            return [self._spell(number, INSIDE) for number in range(size)]
        tokens = (self._backend.id_to_token(number) or "" for number in range(size))
        return [(token.replace(self._word_end, " ") if self._word_end else token).encode() for token in tokens]

    @property
    def special_ids(self) -> list[int]:
        """Tokens that are no text."""
        return sorted(self._special)

    def _spell(self, token_id: int, before: int | None) -> bytes:
        """What a token writes; not always UTF-8, and nothing for an unknown token (cached as ``spell``)."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        raw = self._raw(token)
        if raw is not None and not is_text(raw):
            return raw
        front = [] if before is None else self._anchor if before == INSIDE else [before]
        return self._decode([*front, token_id]).removeprefix(self._decode(front)).encode()

    def _raw(self, token: str) -> bytes | None:
        """The bytes that a byte token stands for; None for a token that is written as text."""
        if self._byte_level and all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return None

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False) if ids else ""

    @cached_property
    def _anchor(self) -> list[int]:
        """A token with a text of its own, to stand in front of one that does not begin the text."""
        numbers = range(self._backend.get_vocab_size(with_added_tokens=True))
        texts = ((number, self._decode([number])) for number in numbers)
        return next(([number] for number, text in texts if text.strip() and REPLACEMENT not in text), [])


def readable(spelt: bytes) -> str:
    r"""``spelt`` as text; bytes that are none as OpenAI writes them, ``bytes:\xe2\x80``, so that none read alike."""
    return spelt.decode() if is_text(spelt) else "bytes:" + spelt.decode(errors="backslashreplace")


def first_chars(spelt: bytes, count: int) -> bytes:
    """The beginning of ``spelt`` that makes ``count`` characters; bytes that end one begun before count as one."""
    head = len(spelt) - len(spelt.lstrip(b"".join(CONTINUATION)))
    chars = spelt[head:].decode(errors="surrogateescape")[: count - bool(head)]
    return spelt[:head] + chars.encode(errors="surrogateescape")


def is_text(spelt: bytes) -> bool:
    """Whether these are whole characters."""
    try:
        spelt.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_of_char() -> dict[str, int]:
    """The map that byte-level tokenizers (GPT-2's and its heirs) use to write each byte as a printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
CONTINUATION = tuple(bytes([byte]) for byte in range(0x80, 0xC0))
"""The bytes that go on with a character."""
