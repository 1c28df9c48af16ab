"""Text to token ids and back: the tokenizer and the chat template of the base, and the tokens that an adapter brings.

It knows nothing of requests or the engine; incremental output is in ``server.text.detokenize``. Imports no torch.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from jinja2 import TemplateError
from tokenizers import Tokenizer

from adapters.errors import BaseMismatchError, PackageError
from adapters.limits import DEFAULT_LIMITS
from adapters.package.added_tokens import AddedToken
from adapters.quoting import quote
from bases.end_tokens import end_token_ids
from bases.fingerprint import template_sha256
from bases.tokenizer import load_tokenizer
from server.errors import InvalidRequestError


def tokens_beside(base: Tokenizer, tokens: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
    """Those of ``tokens`` that ``base`` does not have. Raises BaseMismatchError when it has them otherwise."""
    new = []
    for token in tokens:
        text, number = base.id_to_token(token.id), base.token_to_id(token.content)
        if text is None and number is None:
            new.append(token)
        elif text != token.content:
            theirs = f"token {token.id} is {quote(token.content)} in the adapter's tokenizer"
            ours = f"{quote(text)} in the base's" if text is not None else f"and has the number {number} in the base's"
            raise BaseMismatchError(f"{theirs}, {ours}: the adapter was trained with another base's tokenizer")
    return tuple(new)


def extended_tokenizer(base: Tokenizer, tokens: Sequence[AddedToken]) -> Tokenizer:
    """A tokenizer that has ``tokens``, sorted by id, beside all of ``base``. Raises PackageError when it cannot."""
    extended = _beside(base)
    extended.add_tokens([_native(token) for token in tokens])  # at once: each call builds the search for all anew
    for token in tokens:
        if extended.token_to_id(token.content) != token.id:  # a tokenizer numbers what is added one after the other
            raise PackageError(
                f"the added token {quote(token.content)} has the number {token.id}, but comes as number "
                f"{extended.token_to_id(token.content)} behind the base's tokens; add all tokens in the order of their "
                "ids"
            )
    return extended


def _beside(base: Tokenizer) -> Tokenizer:
    """Another tokenizer that reads and writes as ``base`` does. The vocabulary, which is all of its weight, is shared.

    Reading the base's JSON once more comes to the same, and holds the interpreter's lock for 0.7 seconds where the
    vocabulary has 256,000 tokens.
    """
    other = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):  # before tokens, which get normalized
        if (found := getattr(base, part)) is not None:
            setattr(other, part, found)
    other.encode_special_tokens = base.encode_special_tokens
    own = base.get_added_tokens_decoder()
    other.add_tokens([own[token_id] for token_id in sorted(own)])
    return other


def _native(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


OFFLOAD_CHARS = 4096  # about a millisecond of tokenising: beyond it the event loop is not held up
LONG_CHARS = 262_144  # about a tenth of a second: beyond it others do not wait behind it
MESSAGE_CHARS = 64  # what a template does for a message, in characters
MAX_EXTENDED = 128  # tokenizers kept for adapters that add tokens; each weighs what its own tokens do
T = TypeVar("T")


class TextProcessor:
    """The tokenizer of one base."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        """Wrap a fast tokenizer of transformers'; ``chat_template`` replaces its own."""
        self._hf = tokenizer
        self._chat_template = chat_template or tokenizer.chat_template
        tokenizer.backend_tokenizer.no_truncation()  # some tokenizer.json files carry a limit: it would cut prompts
        tokenizer.backend_tokenizer.no_padding()
        self._extended = lru_cache(maxsize=MAX_EXTENDED)(self._extend)
        # One thread each: however many ask at once, the engine and the event loop keep their share of the cores.
        self._medium = ThreadPoolExecutor(1, "text")
        self._long = ThreadPoolExecutor(1, "long-text")
        self._longest = 1
        self._use(tokenizer.backend_tokenizer, tokenizer.get_vocab())

    def _use(self, backend: Tokenizer, new: Iterable[str]) -> None:
        self._backend = backend
        self._byte_level = b'"ByteLevel"' in (backend.decoder.__getstate__() if backend.decoder else b"")
        self._longest = max((len(token) for token in new), default=1)
        self.token_text = lru_cache(maxsize=65536)(self._token_text)

    def new_tokens(self, tokens: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
        """Those of an adapter's ``tokens`` that this tokenizer does not have; ``with_tokens`` is ready for them then.

        Raises BaseMismatchError when they contradict it, PackageError when they cannot be added or are too long. Takes
        a while.
        """
        if (chars := sum(len(token.content) for token in tokens)) > DEFAULT_LIMITS.max_added_token_chars:
            raise PackageError(
                f"the added tokens of the package have {chars} characters together; at most "
                f"{DEFAULT_LIMITS.max_added_token_chars} are served"
            )
        found = tokens_beside(self._backend, tokens)
        self.with_tokens(found)
        return found

    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        """BaseMismatchError when an adapter was trained with other tokens that begin or end a text, by role."""
        for role in ("bos_token", "eos_token"):
            ours, theirs = getattr(self._hf, role, None), recorded.get(role)
            if ours is not None and theirs is not None and ours != theirs:
                raise BaseMismatchError(
                    f"the adapter was trained with the {role} {quote(str(theirs))}, and this server's tokenizer has "
                    f"{quote(str(ours))}; serve the tokenizer it was trained with, or train it again"
                )

    def with_tokens(self, tokens: tuple[AddedToken, ...]) -> TextProcessor:
        """This tokenizer and ``tokens``, sorted by id. Kept, as it takes a while to make. Raises PackageError."""
        return self._extended(tokens) if tokens else self

    def _extend(self, tokens: tuple[AddedToken, ...]) -> TextProcessor:
        found = copy.copy(self)
        found._use(extended_tokenizer(self._backend, tokens), [token.content for token in tokens])
        found._longest = max(self._longest, found._longest)
        return found

    @classmethod
    def load(cls, path: Path, chat_template: str | None = None) -> TextProcessor:
        """The tokenizer saved in ``path``. Raises BaseModelError when there is none that can be read."""
        return cls(load_tokenizer(path), chat_template)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._chat_template)

    @property
    def chat_template_sha256(self) -> str:
        """Hash of the template that conversations are rendered with; empty without one."""
        return template_sha256(self._chat_template) if isinstance(self._chat_template, str) else ""

    def end_token_ids(self, base: Path) -> tuple[int, ...]:
        """What ends an output of the base in the directory ``base``, whose conversations this renders."""
        return end_token_ids(base, self._hf, self._chat_template if isinstance(self._chat_template, str) else None)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the base has one."""
        return self._hf.bos_token_id  # type: ignore[no-any-return]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    async def encode_off_loop(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Like ``encode``; a long text is encoded on another thread."""
        return await self.off_loop(
            len(text), partial(self._encode_unlocked, text, add_special_tokens=add_special_tokens)
        )

    def _encode_unlocked(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """``encode``, which holds the interpreter's lock until it is done; this lets go of it meanwhile."""
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    async def off_loop(self, chars: int, work: Callable[[], T]) -> T:
        """What ``work``, on about ``chars`` characters or tokens, returns; done on a thread for work of its size."""
        if chars <= OFFLOAD_CHARS:
            return work()
        lane = self._medium if chars <= LONG_CHARS else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of ``len(encode(text))`` that costs nothing: enough to refuse absurdly long texts."""
        return len(text) // self._longest

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def _token_text(self, token_id: int) -> str:
        """How one token reads alone, special tokens shown (cached as ``token_text``)."""
        return self._backend.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, also where it is a part of a character."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level and all(char in _BYTE_OF_CHAR for char in token):
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return self.token_text(token_id).encode()

    def render_chat(self, messages: list[dict[str, Any]], template_kwargs: Mapping[str, Any] | None = None) -> str:
        """The prompt of a conversation, exactly as ``apply_chat_template`` renders it in training.

        Raises InvalidRequestError when the base has no template, or its template refuses the messages.
        """
        if not self._chat_template:
            raise InvalidRequestError(
                "this base has no chat template; use /v1/completions, or start the server with --chat-template",
                param="messages",
            )
        try:
            rendered = self._hf.apply_chat_template(
                messages,
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
                **(template_kwargs or {}),
            )
        except TemplateError as error:
            raise InvalidRequestError(
                f"the chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError, MemoryError) as error:
            raise InvalidRequestError("the chat template cannot render these messages", param="messages") from error
        return str(rendered)

    async def render_chat_off_loop(
        self, messages: list[dict[str, Any]], template_kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """Like ``render_chat``; a long conversation is rendered on another thread."""
        size = count_characters([messages, template_kwargs]) + MESSAGE_CHARS * len(messages)
        return await self.off_loop(size, partial(self.render_chat, messages, template_kwargs))


def count_characters(value: Any) -> int:
    """Characters of all strings in plain data, keys included."""
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            left += item
            left += item.values()
        elif isinstance(item, list):
            left += item
    return total


def _byte_of_char() -> dict[str, int]:
    """The map that byte-level tokenizers (GPT-2's and its heirs) use to write each byte as a printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
