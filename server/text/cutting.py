"""Texts that are cut to a number of tokens, as transformers' tokenizers truncate them.

What a tokenizer puts around a text stays and is counted: models read the state of that token, or of what begins a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer


def cut_encoding(
    backend: Tokenizer, texts: Sequence[str], keep: int, *, keeps_end: bool, special: bool = True
) -> Encoding:
    """The encoding of a text or a pair in ``keep`` tokens at most: their ends are kept, or else their beginnings.

    Of a pair the longer one is cut first (``longest_first``). Without ``special`` nothing is put around. Where that
    alone would not fit, nothing is, either.
    """
    room = keep - backend.num_special_tokens_to_add(len(texts) > 1) if special else keep
    if room <= 0:
        room, special = keep, False
    parts = backend.encode_batch(list(texts), add_special_tokens=False)  # lets go of the lock
    lengths = [len(part.ids) for part in parts]
    for part, size in zip(parts, lengths if sum(lengths) <= room else _shares(lengths, room), strict=True):
        if size < len(part.ids):
            part.truncate(size, direction="left" if keeps_end else "right")
    first, *second = parts
    return backend.post_process(first, second[0] if second else None, special)


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """What of one or two texts stays, in tokens."""
    if len(lengths) == 1:
        return [room]
    short = min(lengths)
    low, high = (short, room - short) if 2 * short <= room else (room // 2, room - room // 2)
    return [low, high] if lengths[0] <= lengths[1] else [high, low]
