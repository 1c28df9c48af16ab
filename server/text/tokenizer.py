"""Text to token ids and back: the tokenizer and the chat template of the base, and what an adapter brings of either.

It knows nothing of requests or the engine; incremental output is in ``server.text.detokenize``, conversations are
written by ``server.text.chat_template``. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Encoding, Tokenizer

from adapters.errors import BaseMismatchError
from adapters.package.added_tokens import AddedToken, check_added
from adapters.package.chat_template import PackageChat
from adapters.quoting import quote
from bases.end_tokens import end_of_turn, end_token_ids
from bases.token_spelling import INSIDE, TokenSpelling, readable
from bases.tokenizer import load_tokenizer
from server.errors import InvalidRequestError
from server.text.adapter_templates import AdapterTemplates
from server.text.chat_template import ChatTemplate, OwnRenderer
from server.text.cutting import cut_encoding
from server.text.extended_tokenizer import extended_tokenizer, tokens_beside
from server.text.template_environment import Message
from server.text.template_form import TemplateForm
from server.text.template_reader import read_template
from server.text.template_sandbox import TemplateOverrunError, TemplateSandbox
from server.text.word_pieces import WordPiece, word_pieces

OFFLOAD_CHARS = 4096  # about a millisecond of tokenising: beyond it the event loop is not held up
LONG_CHARS = 262_144  # about a tenth of a second: beyond it others do not wait behind it
MESSAGE_CHARS = 64  # what a template does for a message, in characters
MAX_REPEATED_CHARS = 16_000_000  # that a template might write by repeating its arguments for each message
MAX_EXTENDED = 128  # tokenizers kept for adapters that add tokens; each weighs what its own tokens do
T = TypeVar("T")


class TextProcessor:
    """The tokenizer of one base, and what writes conversations for it."""

    def __init__(
        self, tokenizer: Any, chat_template: str | None = None, sandbox: TemplateSandbox | None = None
    ) -> None:
        """Wrap a fast tokenizer of transformers'; ``chat_template`` replaces its own.

        Templates of adapters are rendered by ``sandbox``, and not used without one.
        """
        self._hf = tokenizer
        source = chat_template or _default_template(tokenizer)
        self._chat = ChatTemplate(source, OwnRenderer(tokenizer, source)) if source else None
        of_tools = None if chat_template else _tool_template(tokenizer)
        self._tool_chat = ChatTemplate(of_tools, OwnRenderer(tokenizer, of_tools)) if of_tools else None
        self._templates = AdapterTemplates(source, tokenizer.special_tokens_map, sandbox)
        tokenizer.backend_tokenizer.no_truncation()  # some tokenizer.json files carry a limit: it would cut prompts
        tokenizer.backend_tokenizer.no_padding()
        self._extended = lru_cache(maxsize=MAX_EXTENDED)(self._extend)
        # One thread each: however many ask at once, the engine and the event loop keep their share of the cores.
        self._medium = ThreadPoolExecutor(1, "text")
        self._long = ThreadPoolExecutor(1, "long-text")
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        self.added: tuple[AddedToken, ...] = ()  # beside the base's
        self._use(tokenizer.backend_tokenizer)

    def _use(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.spelling = TokenSpelling(backend)

    def new_tokens(self, tokens: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
        """Those of an adapter's ``tokens`` that this tokenizer does not have; ``with_tokens`` is ready for them then.

        Raises BaseMismatchError when they contradict it, PackageError when they cannot be added or are too long. Takes
        a while.
        """
        found = tokens_beside(self._backend, tokens)
        check_added(found)
        self.with_tokens(found)
        return found

    def unnamed(self, ids: Sequence[int], tokens: tuple[AddedToken, ...]) -> list[int]:
        """Those of ``ids`` that neither this tokenizer nor an adapter's new ``tokens`` have a text for."""
        mine = self.with_tokens(tokens) if ids else self
        return [token for token in ids if not mine.has_token(token)]

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
        found._use(extended_tokenizer(self._backend, tokens))
        found.added = tokens
        found._longest = max(self._longest, *(len(token.content) for token in tokens))
        return found

    # ---- what an adapter brings for conversations ----

    def fit_chat(self, chat: PackageChat, tokens: tuple[AddedToken, ...], base_ends: Collection[int]) -> PackageChat:
        """What of a package's ``chat`` is served, beside the end tokens of the base; with warnings of what is not.

        ``tokens`` are those that it adds to this tokenizer. Raises EngineUnavailableError. Takes a while.
        """
        mine = self.with_tokens(tokens)
        served = self._templates.fit(chat)
        warnings = list(served.warnings)
        ends = {token for token in chat.end_token_ids if mine.has_token(token)}
        if (eos := chat.eos_token) is not None:
            number = mine._backend.token_to_id(eos)
            if number is None:
                warnings.append(
                    f"its tokenizer ends a text with {quote(eos)}, which the base's does not know: outputs end where "
                    "the base's do"
                )
            else:
                ends.add(number)
        if served.template is not None:
            ends |= mine.with_chat(served)._end_of_turn(warnings)
        elif chat.template is not None:
            ends |= mine._end_of_unused(chat.template, self._templates.special_tokens_of(chat))
        if own := sorted(ends - set(base_ends)):
            texts = ", ".join(quote(mine._backend.id_to_token(token)) for token in own)
            warnings.append(
                f"it ends an output with {texts}, unlike the base: its outputs end there and where the base's do"
            )
        plain = replace(served, end_token_ids=tuple(own), warnings=tuple(warnings), written_tools=False)
        written = served.written_tools and mine.with_chat(plain)._templates_know_tools
        return replace(plain, written_tools=written)

    @property
    def _templates_know_tools(self) -> bool:
        known = self._chat is not None and (self._chat.knows_tools or self._chat.writes_calls)
        return known or self._tool_chat is not None

    def _end_of_turn(self, warnings: list[str]) -> set[int]:
        """What this template writes behind an answer."""
        assert self._chat is not None
        problems: list[InvalidRequestError] = []

        def render(messages: list[Message]) -> str | None:
            try:
                return self.render_chat(messages, {"add_generation_prompt": False})
            except InvalidRequestError as error:
                problems.append(error)
                if isinstance(error, TemplateOverrunError):  # it would be another time
                    raise
                return None

        ends: set[int] = set()
        with contextlib.suppress(TemplateOverrunError):
            ends = self._written_last(render)
        warnings += [f"its chat template fails on a short conversation: {problem}" for problem in problems[:1]]
        return ends

    def _end_of_unused(self, template: str, special_tokens: Mapping[str, str]) -> set[int]:
        """What a template that is not allowed to run writes behind an answer: the adapter has learned to end there."""
        arguments = {**special_tokens, "add_generation_prompt": False}
        return self._written_last(lambda messages: read_template(template, messages, arguments))

    def _written_last(self, render: Callable[[list[Message]], str | None]) -> set[int]:
        special = [number for number, token in self._backend.get_added_tokens_decoder().items() if token.special]
        end = end_of_turn(render, lambda text: self.encode(text, add_special_tokens=False), special)
        return set() if end is None else {end}

    def with_chat(self, chat: PackageChat) -> TextProcessor:
        """This tokenizer, writing conversations as ``chat`` says, which ``fit_chat`` gave."""
        template = self._templates.get(chat)
        if chat.written_tools:
            template = template or self._chat
            template = template and template.with_written_tools
        if template is None:
            return self
        found = copy.copy(self)
        found._chat, found._tool_chat = template, None
        return found

    def close(self) -> None:
        """End what renders adapters' templates."""
        self._templates.close()

    # ---- text, tokens, conversations ----

    @classmethod
    def load(
        cls,
        path: Path,
        chat_template: str | None = None,
        sandbox: TemplateSandbox | None = None,
        trust_remote_code: bool = False,
    ) -> TextProcessor:
        """The tokenizer saved in ``path``. Raises BaseModelError when there is none that can be read."""
        return cls(load_tokenizer(path, trust_remote_code), chat_template, sandbox)

    def configuration(self) -> dict[str, Any]:
        """What the tokenizer was loaded with, in JSON's own kinds, and the chat template that is used."""
        kept = {name: value for name, value in self._hf.init_kwargs.items() if not name.endswith(("_file", "_path"))}
        told = {name: _json_kind(value) for name, value in kept.items()}
        added = {
            str(token_id): {name: getattr(token, name) for name in _TOKEN_FACTS}
            for token_id, token in sorted(self._hf.added_tokens_decoder.items())
        }
        return {
            **{name: value for name, value in told.items() if value is not None},
            **{name: str(token) for name, token in self._hf.special_tokens_map.items() if isinstance(token, str)},
            "added_tokens_decoder": added,
            "model_max_length": min(int(self._hf.model_max_length), 2**53),
            "tokenizer_class": type(self._hf).__name__,
            "chat_template": self._chat.source if self._chat is not None else None,
        }

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._chat is not None

    @property
    def template_form(self) -> TemplateForm | None:
        """What form of conversations the template takes."""
        return self._chat.form if self._chat is not None else None

    @property
    def chat_template_sha256(self) -> str:
        """Hash of the template that conversations are rendered with; empty without one."""
        return self._chat.sha256 if self._chat is not None else ""

    def end_token_ids(self, base: Path) -> tuple[int, ...]:
        """What ends an output of the base in the directory ``base``, whose conversations this renders."""
        return end_token_ids(base, self._hf, self._chat.source if self._chat is not None else None)

    def has_token(self, token_id: int) -> bool:
        """Whether there is a token of this number."""
        return token_id < 1 << 31 and self._backend.id_to_token(token_id) is not None

    def token_id(self, token: str) -> int | None:
        """The id of a token by the name that the vocabulary has for it."""
        return self._backend.token_to_id(token)

    def special_token(self, text: str) -> int | None:
        """The special token that is written so, if there is one."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id is not None and self.spelling.is_special(token_id) else None

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the base has one."""
        return self._hf.bos_token_id  # type: ignore[no-any-return]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``. The interpreter's lock is free meanwhile, which the library's ``encode`` holds."""
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    async def encode_pair_off_loop(self, first: str, second: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of two texts, joined as the tokenizer joins pairs; does not hold up the event loop for long."""
        encode = partial(self._backend.encode, first, second, add_special_tokens=add_special_tokens)
        ids: list[int] = (await self.off_loop(len(first) + len(second), encode)).ids
        return ids

    async def encode_cut_off_loop(
        self, texts: Sequence[str], keep: int, *, keeps_end: bool, add_special_tokens: bool
    ) -> list[int]:
        """Token ids of a text or a pair, cut as ``server.text.cutting`` says; does not hold up the event loop."""
        cut = partial(cut_encoding, self._backend, texts, keep, keeps_end=keeps_end, special=add_special_tokens)
        return (await self.off_loop(sum(map(len, texts)), cut)).ids

    async def encode_off_loop(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Like ``encode``; a long text is encoded on another thread."""
        return await self.off_loop(len(text), partial(self.encode, text, add_special_tokens=add_special_tokens))

    async def off_loop(self, chars: int, work: Callable[[], T]) -> T:
        """What ``work``, on about ``chars`` characters or tokens, returns; done on a thread for work of its size."""
        if chars <= OFFLOAD_CHARS:
            return work()
        lane = self._medium if chars <= LONG_CHARS else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of ``len(encode(text))`` that costs nothing: enough to refuse absurdly long texts."""
        return len(text) // self._longest

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ``ids``, special tokens shown unless skipped; bytes that are not UTF-8 become U+FFFD."""
        pieces = self.spelling.spell_all(ids, skip_special_tokens=skip_special_tokens)
        return b"".join(pieces).decode(errors="replace")

    def piece(self, token_id: int) -> str | None:
        """How the vocabulary writes a token, which no other has; None for an id that is none of its."""
        return self._backend.id_to_token(token_id)

    def token_bytes(self, token_id: int, before: int | None = INSIDE) -> bytes:
        """The exact bytes of one token, special or not, also where it is a part of a character."""
        return self.spelling.spell(token_id, before)

    def token_text(self, token_id: int, before: int | None = INSIDE) -> str:
        """How one token reads, special or not."""
        return readable(self.spelling.spell(token_id, before))

    @property
    def drops_first_space(self) -> bool:
        """Whether a token that writes a space amid a text writes none where it begins one."""
        ids = self.encode("a", add_special_tokens=False)
        return bool(ids) and self.token_bytes(ids[0]) != self.token_bytes(ids[0], None)

    def char_spans(self, text: str, ids: list[int]) -> list[tuple[int, int]] | None:
        """Which characters of ``text`` each of its tokens ``ids`` was made of; None when they are not its tokens.

        Of a text that was cut they are the last ones, or as ``server.text.cutting`` leaves it.
        """
        encoding = self._encoding_of(text, ids)
        return None if encoding is None else encoding.offsets[-len(ids) :]

    def word_pieces(self, text: str, ids: list[int]) -> list[WordPiece] | None:
        """The tokens ``ids`` of ``text`` by words, as ``char_spans``."""
        encoding = self._encoding_of(text, ids)
        if encoding is None:
            return None
        return list(word_pieces(self._backend, self._hf.unk_token_id, text, encoding, len(ids)))

    def joined(self, spelt: Sequence[str]) -> str:
        """The text of tokens as the vocabulary spells them: transformers' ``convert_tokens_to_string``."""
        text: str = self._backend.decoder.decode(spelt) if self._backend.decoder else " ".join(spelt)
        return text

    def _encoding_of(self, text: str, ids: list[int]) -> Encoding | None:
        for special in (True, False):
            (encoding,) = self._backend.encode_batch([text], add_special_tokens=special)  # lets go of the lock
            if ids and encoding.ids[-len(ids) :] == ids:
                return encoding
            for keeps_end in (True, False) if 0 < len(ids) < len(encoding.ids) else ():
                cut = cut_encoding(self._backend, [text], len(ids), keeps_end=keeps_end, special=special)
                if cut.ids == ids:
                    return cut
        return None

    def render_chat(self, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None = None) -> str:
        """The prompt of a conversation, exactly as ``apply_chat_template`` renders it in training.

        ``add_generation_prompt`` (true unless said) and ``continue_final_message`` are among ``template_kwargs``.
        Raises InvalidRequestError when there is no template, or it refuses the messages.
        """
        return self.template_for(template_kwargs).render(messages, template_kwargs)

    async def render_chat_off_loop(
        self, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """Like ``render_chat``; what takes a while, or is an adapter's, happens on another thread."""
        template = self.template_for(template_kwargs)
        if template.is_foreign:
            return await template.render_foreign(messages, template_kwargs)
        tools = count_characters((template_kwargs or {}).get("tools"))
        given = count_characters(template_kwargs) - tools
        if given * len(messages) > MAX_REPEATED_CHARS:
            raise InvalidRequestError(
                f"chat_template_kwargs: {given} characters, which a template may write for each of {len(messages)} "
                f"messages; these may come to {MAX_REPEATED_CHARS} together",
                param="chat_template_kwargs",
            )
        size = count_characters(list(messages)) + given + tools + MESSAGE_CHARS * len(messages)
        return await self.off_loop(size, partial(template.render, messages, template_kwargs))

    def template_for(self, template_kwargs: Mapping[str, Any] | None) -> ChatTemplate:
        """What writes a conversation with these; some bases have a template of its own for tools.

        Raises InvalidRequestError when there is none.
        """
        if self._tool_chat is not None and (template_kwargs or {}).get("tools"):
            return self._tool_chat
        if self._chat is None:
            raise InvalidRequestError(
                "this base has no chat template; use /v1/completions, or start the server with --chat-template",
                param="messages",
            )
        return self._chat


_TOKEN_FACTS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def _json_kind(value: Any) -> Any:
    """``value``, or None for what is no plain value or list of texts."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return value if isinstance(value, str | bool | float) or (type(value) is int and abs(value) < 2**53) else None


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


def _default_template(tokenizer: Any) -> str | None:
    """The template that a tokenizer's conversations are rendered with; of several, the one that needs no tools."""
    found = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found


def _tool_template(tokenizer: Any) -> str | None:
    """The one for conversations with tools, where there are several."""
    found = tokenizer.chat_template
    return found.get("tool_use") if isinstance(found, dict) else None
