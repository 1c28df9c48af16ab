"""Rows as token ids, on disk, and the batches that are made of them. Knows no files and no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from trainer.config.data import DataConfig
from trainer.data.batches import BLANK
from trainer.data.conversations import DroppedRow
from trainer.data.disk import DiskSequence
from trainer.data.encoding import IGNORED
from trainer.data.rendering import ChatRenderer, make_renderer
from trainer.errors import DataError
from trainer.pooling.texts import Text

Ids = tuple[int, ...]


class PooledExample(msgspec.Struct, frozen=True, array_like=True):
    """Token ids of the texts of a row, and what is wanted: ids of classes, a number, or nothing more.

    With ``places``, those of the tokens that begin its words (-1 for a word without one), ``classes`` are their tags.
    Of a blank nothing is wanted: it only fills a batch, behind all others.
    """

    texts: tuple[Ids, ...]
    classes: tuple[int, ...] = ()
    number: float | None = None
    places: tuple[int, ...] = ()
    is_blank: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.texts))


_decoder = msgspec.msgpack.Decoder(PooledExample)


class PooledExamples(DiskSequence[PooledExample]):
    """Examples on disk. ``lengths`` are the tokens of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    @override
    def append(self, item: PooledExample) -> None:
        super().append(item)
        self.lengths.append(len(item))

    @override
    def _encode(self, item: PooledExample) -> bytes:
        return msgspec.msgpack.encode(item)

    @override
    def _decode(self, data: bytes) -> PooledExample:
        return _decoder.decode(data)


class PooledDataset(Dataset[PooledExample]):
    """Examples by index; ``blank_id`` is the one token of the blank, which is of the kind of the others."""

    def __init__(self, examples: Sequence[PooledExample], blank_id: int = 0) -> None:
        self.examples = examples
        first = examples[0]
        places = (-1,) if first.places else ()
        self._blank = PooledExample(((blank_id,),), first.classes[:1], first.number, places, is_blank=True)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> PooledExample:
        return self._blank if index == BLANK else self.examples[index]


class TextEncoder:
    """Texts to token ids, exactly as a server makes them of what it is sent.

    A string is tokenised as the tokenizer begins and ends texts, a pair of strings as it joins pairs, a conversation by
    the chat template, without the beginning of an answer.
    """

    def __init__(self, config: DataConfig, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._renderer: ChatRenderer | None = None

    def text(self, text: Text) -> Ids:
        """Token ids of one text. Raises DroppedRow, and DataError where the base has no chat template."""
        if isinstance(text, str):
            return self._fit(self._backend.encode(text, add_special_tokens=True).ids)
        if self._renderer is None:
            made = make_renderer(self._config, self._tokenizer)
            if not isinstance(made, ChatRenderer):
                raise DataError("data.template: none cannot write conversations; set it to chat or a named template")
            self._renderer = made
        rendered = self._renderer.whole(text)
        return self._fit(self._backend.encode(rendered, add_special_tokens=False).ids)

    def words(self, text: str, words: Sequence[tuple[int, int]]) -> tuple[Ids, tuple[int | None, ...]]:
        """Token ids of one text, and the places of those that begin its ``words``: -1 for a word without a token, None
        for one that was cut off. Raises DroppedRow."""
        encoding = self._backend.encode(text, add_special_tokens=True)
        ids = self._fit(encoding.ids)
        ahead = len(encoding.ids) - len(ids) if self._config.too_long == "cut_start" else 0
        places = [place - ahead if place >= 0 else -1 for place in first_tokens(words, encoding.offsets)]
        kept = [place if place == -1 or 0 <= place < len(ids) else None for place in places]
        if not any(place is not None and place >= 0 for place in kept):
            raise DroppedRow("a text without words")
        return ids, tuple(kept)

    def pair(self, first: str, second: str) -> Ids:
        """Token ids of two texts, joined. Raises DroppedRow."""
        return self._fit(self._backend.encode(first, second, add_special_tokens=True).ids)

    def _fit(self, ids: list[int]) -> Ids:
        limit = self._config.max_length
        if not ids:
            raise DroppedRow("a text without tokens")
        if len(ids) <= limit:
            return tuple(ids)
        if self._config.too_long == "drop":
            raise DroppedRow(f"longer than data.max_length {limit}")
        return tuple(ids[-limit:] if self._config.too_long == "cut_start" else ids[:limit])


def first_tokens(words: Sequence[tuple[int, int]], tokens: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The place of the token that each of ``words`` begins in, -1 where none does; both are begins and ends in a text.

    Words that a tokenizer writes as one token share it.
    """
    at = 0
    for start, end in words:
        while at < len(tokens) and tokens[at][1] <= start:
            at += 1
        yield at if start < end and at < len(tokens) and tokens[at][0] < end else -1


class PooledCollator:
    """Pads on the right. ``num_labels`` is the width of the targets of rows with any number of classes, else 0."""

    def __init__(self, pad_id: int, num_labels: int = 0) -> None:
        self._pad_id, self._num_labels = pad_id, num_labels

    def __call__(self, examples: Sequence[PooledExample]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` [texts, longest]; ``labels`` [rows] or [rows, num_labels].

        With several texts a row: the first ones of all rows, then the second ones, then all others. ``labels`` are ids
        of classes, numbers, or the places of the second texts among those behind the first ones; ``keys`` are of these
        [texts - rows], the same for texts that are equal.

        Of words ``labels`` [rows, longest] are the ids at their first tokens, IGNORED elsewhere; ``places`` and
        ``tags`` [rows, most words] are of the words, filled up with -1 and IGNORED.

        Blanks have no labels, and no texts where there are others.
        """
        first = examples[0]
        compared = not (self._num_labels or first.places or first.classes or first.number is not None)
        if compared:
            examples = [example for example in examples if not example.is_blank] or examples
        firsts = [example.texts[0] for example in examples]
        others = [example.texts[1] for example in examples if len(example.texts) > 1]
        others += [text for example in examples for text in example.texts[2:]]
        batch = self._padded([*firsts, *others])
        if examples[0].places:
            return batch | _of_words(examples, batch["input_ids"].shape[1])
        batch["labels"] = self._labels(examples)[: sum(not example.is_blank for example in examples)]
        if compared:
            batch["keys"] = torch.tensor([hash(text) for text in others], dtype=torch.int64)  # of ints: always the same
        return batch

    def _padded(self, texts: Sequence[Ids]) -> dict[str, Tensor]:
        longest = max(map(len, texts))
        ids = [[*text, *[self._pad_id] * (longest - len(text))] for text in texts]
        mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def _labels(self, examples: Sequence[PooledExample]) -> Tensor:
        if examples[0].number is not None:
            return torch.tensor([example.number for example in examples], dtype=torch.float32)
        if self._num_labels:
            labels = torch.zeros(len(examples), self._num_labels)
            for row, example in enumerate(examples):
                labels[row, list(example.classes)] = 1.0
            return labels
        if examples[0].classes:
            return torch.tensor([example.classes[0] for example in examples])
        return torch.arange(len(examples))


def _of_words(examples: Sequence[PooledExample], longest: int) -> dict[str, Tensor]:
    most = max(len(example.places) for example in examples)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in zip(labels, examples, strict=True):
        for place, tag in reversed([*zip(example.places, example.classes, strict=True)]):
            if place >= 0:
                row[place] = tag  # of words that share a token the first one's
    places = [[*example.places, *[-1] * (most - len(example.places))] for example in examples]
    tags = [[*example.classes, *[IGNORED] * (most - len(example.classes))] for example in examples]
    return {"labels": labels, "places": torch.tensor(places), "tags": torch.tensor(tags)}
