"""What fits into a sequence: prompts are checked, and cut, against what the base and the adapter leave of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.job import Prompt
from server.api.wire import SamplingBody
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor

MAX_LENGTH_CODE = "context_length_exceeded"
MAX_CUT_CHARS = 2**20  # of a text of which only the end is kept: all of it has to be tokenised
CHARS_A_TOKEN = 16  # hardly a text has more
SEAM_TOKENS = 64  # at most so many are others where a text is cut


@dataclass(frozen=True)
class ContextBudget:
    """How many positions a sequence has: ``limit`` in all, ``virtual`` of them the adapter's own; and what goes there.

    ``text`` is the adapter's tokenizer, ``vocab_size`` the token ids it knows. Of a prompt longer than ``keep`` only
    its end is read, or its beginning.
    """

    limit: int
    virtual: int
    field_name: str  # what the client called its input
    text: TextProcessor
    vocab_size: int
    keep: int | None = None
    keeps_end: bool = True

    async def encode(self, text: str, *, add_special_tokens: bool) -> Prompt:
        """The tokens of ``text``. Raises InvalidRequestError when they do not fit, or are none."""
        self._check_cut(text)
        await self._refuse_hopeless(text)
        ids = await self.text.encode_off_loop(text, add_special_tokens=add_special_tokens)
        if not ids:
            if self.text.bos_token_id is None:
                raise InvalidRequestError(f"the {self.field_name} holds no tokens", param=self.field_name)
            ids = [self.text.bos_token_id]
        self.check_known(ids)
        return self.cut(Prompt(ids, text))

    async def encode_text(self, text: str, *, add_special_tokens: bool) -> Prompt:
        """Like ``encode``, of a text that is only read: where it is cut, what the tokenizer puts around it stays."""
        if not self.keep:
            return await self.encode(text, add_special_tokens=add_special_tokens)
        prompt = await self.encode_cut(text, add_special_tokens=add_special_tokens)
        if not prompt.ids:
            return await self.encode(text, add_special_tokens=add_special_tokens)
        self.check_known(prompt.ids)
        return prompt

    async def encode_cut(self, *texts: str, add_special_tokens: bool) -> Prompt:
        """The tokens of a text or a pair that are kept. Raises InvalidRequestError for texts too long to be cut."""
        assert self.keep is not None
        for text in texts:
            self._check_cut(text)
        ids = await self.text.encode_cut_off_loop(
            texts, self.keep, keeps_end=self.keeps_end, add_special_tokens=add_special_tokens
        )
        return Prompt(ids)

    def cut(self, prompt: Prompt) -> Prompt:
        """What of ``prompt`` is read. The text of one that is cut is that of its tokens."""
        if not self.keep or len(prompt.ids) <= self.keep:
            return prompt
        return Prompt(prompt.ids[-self.keep :] if self.keeps_end else prompt.ids[: self.keep])

    def _check_cut(self, text: str) -> None:
        if self.keep is not None and len(text) > MAX_CUT_CHARS:
            raise InvalidRequestError(
                f"a text that is cut (`truncate_prompt_tokens`) may have at most {MAX_CUT_CHARS} characters, and the "
                f"{self.field_name} has {len(text)}; send its end",
                param=self.field_name,
            )

    async def _refuse_hopeless(self, text: str) -> None:
        """Spare the work on a text that can never fit: what its beginning alone comes to says so."""
        self.check(self.text.fewest_tokens(text), 0, at_least=True)
        if len(text) > (enough := self.limit * CHARS_A_TOKEN + SEAM_TOKENS):
            ids = await self.text.encode_off_loop(text[:enough], add_special_tokens=False)
            self.check(len(ids) - SEAM_TOKENS, 0, at_least=True)

    def check_known(self, ids: list[int]) -> None:
        """Raise InvalidRequestError for a token that the adapter does not know."""
        if (highest := max(ids)) >= self.vocab_size:
            message = f"{self.field_name}: token id {highest} is out of vocabulary, which has {self.vocab_size}"
            raise InvalidRequestError(message, param=self.field_name)

    def check(self, prompt_tokens: int, completion_tokens: int, *, at_least: bool = False) -> None:
        """Raise InvalidRequestError, in OpenAI's words, when a prompt and its completion do not fit."""
        if at_least and self.keep is not None:
            return  # it will be cut
        need = 1 if completion_tokens else 0  # a completion of one token must fit, a scored prompt may fill all
        if prompt_tokens + self.virtual + need > self.limit:
            count = f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
            raise self._too_long(
                f"your {self.field_name} resulted in {count} tokens{self._of_adapter()}", self.field_name
            )
        if prompt_tokens + self.virtual + completion_tokens > self.limit:
            total = prompt_tokens + completion_tokens
            raise self._too_long(
                f"you requested {total} tokens ({prompt_tokens} in the {self.field_name}, {completion_tokens} in the "
                f"completion){self._of_adapter()}",
                f"{self.field_name} or completion",
            )

    def cutting(self, body: SamplingBody, completion_tokens: int) -> ContextBudget:
        """For the prompts of ``body``, which may ask to keep their ends or beginnings; -1 keeps as much as fits."""
        keep = self.kept(body.truncate_prompt_tokens, completion_tokens)
        return replace(self, keep=keep, keeps_end=body.truncation_side != "right")

    def kept(self, asked: int | None, completion_tokens: int = 0) -> int | None:
        """How many tokens are read where so many are asked for. Raises InvalidRequestError for more than ever fit."""
        if asked is not None and asked > self.limit:
            raise InvalidRequestError(
                f"truncate_prompt_tokens is {asked}, greater than the {self.limit} tokens of the model's context; ask "
                "for no more, or for -1, as many as fit",
                param="truncate_prompt_tokens",
            )
        return max(self.left(completion_tokens), 1) if asked == -1 else asked

    def left(self, prompt_tokens: int) -> int:
        """Positions for the completion."""
        return self.limit - self.virtual - prompt_tokens

    def _of_adapter(self) -> str:
        return f", and the adapter itself takes {self.virtual}" if self.virtual else ""

    def _too_long(self, what: str, reduce: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"This model's maximum context length is {self.limit} tokens. However, {what}. "
            f"Please reduce the length of the {reduce}.",
            param=self.field_name,
            code=MAX_LENGTH_CODE,
        )


def budget_for(context: ServerContext, adapter: AdapterKey | None, field_name: str) -> ContextBudget:
    """The positions of one sequence: what the base allows and the KV cache can hold."""
    info = context.engine.info
    virtual = context.registry.leased(adapter).num_virtual_tokens if adapter else 0
    limit = min(info.max_model_len, info.num_kv_blocks * info.block_size)
    return ContextBudget(limit, virtual, field_name, context.text_of(adapter), context.vocab_size(adapter))
