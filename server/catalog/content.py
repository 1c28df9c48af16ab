"""What a package would have its name say: its weights, its tokens and its conversations. That is what makes a version.

Knows the tokenizer of the base and the disk; no names, no store and no requests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from adapters.errors import AdapterError
from adapters.package.added_tokens import AddedToken, read_added_tokens, unnamed_tokens
from adapters.package.chat_template import NO_CHAT, PackageChat, read_chat
from adapters.package.head import PackageHead, read_head
from adapters.package.inspection import PackageInfo, inspect_package
from adapters.package.sentence_model import SentenceModel, read_adapters_model
from server.catalog.versions import AdapterVersion
from server.engine.ipc.client import EngineClient

Tokens = tuple[AddedToken, ...]


class Vocabulary(Protocol):
    """The tokenizer of the base, as far as packages must fit it."""

    def new_tokens(self, tokens: Tokens) -> Tokens:
        """Those of a package's added ``tokens`` that it does not have. Raises AdapterError."""
        ...

    def unnamed(self, ids: Sequence[int], tokens: Tokens) -> list[int]:
        """Those of ``ids`` that neither it nor the added ``tokens`` of a package have a text for."""
        ...

    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        """Raise AdapterError when a package was trained with other special tokens, by role."""
        ...

    def fit_chat(self, chat: PackageChat, tokens: Tokens, base_ends: Collection[int]) -> PackageChat:
        """What of a package's ``chat`` is served beside the base's end tokens. Raises EngineUnavailableError."""
        ...


class AnyVocabulary(Vocabulary):
    """One that every package fits, and none adds to."""

    @override
    def new_tokens(self, tokens: Tokens) -> Tokens:
        return ()

    @override
    def unnamed(self, ids: Sequence[int], tokens: Tokens) -> list[int]:
        return []

    @override
    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        pass

    @override
    def fit_chat(self, chat: PackageChat, tokens: Tokens, base_ends: Collection[int]) -> PackageChat:
        return NO_CHAT


@dataclass(frozen=True)
class Content:
    """A sound package: ``tokens`` are those that it adds to the base's, ``chat`` what is served of its own.

    ``head`` is its own head, where it answers with classes or numbers; ``sentence_model`` how it makes vectors, where
    sentence-transformers saved it. ``notes`` are what else there is to know.
    """

    info: PackageInfo
    tokens: Tokens
    chat: PackageChat
    head: PackageHead | None = None
    sentence_model: SentenceModel | None = None
    notes: tuple[str, ...] = ()

    def is_of(self, version: AdapterVersion) -> bool:
        """Whether ``version`` is this."""
        theirs = version.key.digest, version.tokens, version.chat, version.head, version.sentence_model
        return theirs == (self.info.digest, self.tokens, self.chat, self.head, self.sentence_model)


class ContentReader:
    """Reads packages for the base of ``engine``."""

    def __init__(self, engine: EngineClient, vocabulary: Vocabulary) -> None:
        self._engine = engine
        self._vocabulary = vocabulary

    def read(self, package: Path) -> Content:
        """What the directory ``package`` holds; blocks on the disk. Raises AdapterError or EngineUnavailableError."""
        info = inspect_package(package)
        tokens = self._read_tokens(info)
        ends = self._engine.info.eos_token_ids if self._engine.ready else ()  # which then refuses the package
        head = read_head(package, info.config, info.manifest, info.tensors)
        data = info.manifest.data if info.manifest else None
        chat = replace(read_chat(package), written_tools=data is not None and data.tools == "text")
        model, notes = read_adapters_model(package, info.manifest) if head is None else (None, ())
        return Content(info, tokens, self._vocabulary.fit_chat(chat, tokens, ends), head, model, notes)

    def warnings(self, content: Content, trained_ids: Sequence[int]) -> tuple[str, ...]:
        """What to know of ``content``, which has embeddings of its own for ``trained_ids``."""
        unnamed = self._vocabulary.unnamed(trained_ids, content.tokens)
        return (*unnamed_tokens(unnamed), *content.chat.warnings, *content.notes)

    def _read_tokens(self, info: PackageInfo) -> Tokens:
        """What its tokens are beside the base's, once both tokenizers are known to agree."""
        named: Tokens = ()
        if info.manifest is not None:
            if info.manifest.base.fingerprint == self._engine.info.base_fingerprint:  # or the base is refused by name
                self._vocabulary.check_special_tokens(info.manifest.special_tokens)
            named = tuple(info.manifest.added_tokens)
        return self._vocabulary.new_tokens(read_added_tokens(info.path, named))


def is_sound(version: AdapterVersion) -> bool:
    """Whether its files would be taken for it again, after a restart of the engine, say. Blocks on the disk."""
    try:
        return inspect_package(version.path).digest == version.key.digest
    except (AdapterError, OSError):
        return False
