"""Responses that are kept: how they become records, and what a conversation that goes on from one consists of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.api.context import ServerContext
from server.api.outputs import Usage
from server.api.responses.body import PromptBody
from server.api.responses.items import Item, as_items
from server.api.responses.outputs import new_id
from server.api.responses.socket import Recollection
from server.api.responses.summaries import from_summary, last_turn
from server.catalog.answers import AnswerKind, AnswerQuery, AnswerRecord, is_conversation
from server.catalog.conversation_turns import Turn
from server.catalog.kept_answers import UnknownConversationError
from server.errors import InvalidRequestError, ServerError

logger = logging.getLogger(__name__)
Response = dict[str, Any]
_PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs", "compaction": "cmp"}


@dataclass(frozen=True)
class Conversation:
    """The items that are answered: the new ones, and those before, of the ``chain`` of records that is gone on from."""

    new: list[Item]
    earlier: list[Item] = field(default_factory=list)
    chain: Sequence[AnswerRecord] = ()
    kept_in: AnswerRecord | None = None  # where all of it is kept, and what comes is
    summary: Item | None = None  # of what was said before the last turn, in its place
    spent: tuple[Usage, ...] = ()  # on the summary

    @property
    def until(self) -> int:
        """The number of the last item of ``kept_in``."""
        return max((one.number for one in self.chain if one.kind is AnswerKind.ITEM), default=0) if self.kept_in else 0

    @property
    def items(self) -> list[Item]:
        """All, in their order."""
        said = [*self.earlier, *self.new]
        return said if self.summary is None else [self.summary, *last_turn(said)]


async def turn_of(context: ServerContext, owner: str, body: PromptBody) -> Turn | None:
    """The right to answer in the conversation that ``body`` names, if it names one.

    Raises UnknownConversationError, LockedError.
    """
    if body.conversation_id is None:
        return None
    await _asked_conversation(context, owner, body.conversation_id)
    return await context.answers.turns.take(body.conversation_id, param="conversation")


async def conversation_of(
    context: ServerContext, owner: str, body: PromptBody, recollection: Recollection | None = None
) -> Conversation:
    """What ``body`` asks to be answered; it may go on from what its connection remembers.

    Raises InvalidRequestError, PreviousResponseError, UnknownConversationError.
    """
    new = [whole_item(item) for item in as_items(body.input)]
    if body.conversation_id is not None:
        record = await _asked_conversation(context, owner, body.conversation_id)
        rows = await item_records(context, record)
        return Conversation(new, from_summary(list(map(item_of, rows))), [record, *rows], kept_in=record)
    if body.previous_response_id is None:
        return Conversation(new)
    check_id(body.previous_response_id, "previous_response_id")
    if recollection is not None and (known := recollection.get(body.previous_response_id)) is not None:
        return Conversation(new, from_summary(known))
    chain = await _chain(context, owner, body.previous_response_id)
    limit = context.config.max_prompt_chars
    if sum(len(record.input) + len(record.body) for record in chain) > 4 * limit:
        raise InvalidRequestError(
            f"previous_response_id: the conversation before holds more than {limit} characters, the limit of one "
            "request (--max-prompt-chars); begin another, or send what it came to in `input`",
            param="previous_response_id",
            code="string_above_max_length",
        )
    if response_of(chain[-1])["status"] not in ("completed", "incomplete"):
        raise InvalidRequestError(
            "previous_response_id: that response has not been made, or not yet; wait for it, or go on from another",
            param="previous_response_id",
        )
    return Conversation(new, from_summary([item for record in chain for item in _items_of(record)]), chain)


async def _asked_conversation(context: ServerContext, owner: str, id: str) -> AnswerRecord:
    try:
        return await context.answers.get(id, AnswerKind.CONVERSATION, owner)
    except UnknownConversationError as error:
        error.param = "conversation"  # the field that names it here
        raise


async def _chain(context: ServerContext, owner: str, id: str) -> list[AnswerRecord]:
    """The response ``id`` and all records that it goes on from: responses, before them a conversation and its items."""
    first, *others = await context.answers.chain(id, owner)
    if first.kind is not AnswerKind.CONVERSATION:
        return [first, *others]
    items = await item_records(context, first, until=others[0].until, param="previous_response_id")
    return [first, *items, *others]


def _items_of(record: AnswerRecord) -> list[Item]:
    """What a record of a chain adds to it."""
    if record.kind is AnswerKind.RESPONSE:
        return [*inputs_of(record), *response_of(record)["output"]]
    return [item_of(record)] if record.kind is AnswerKind.ITEM else []


def check_id(id: str, param: str = "response_id") -> None:
    """Raise InvalidRequestError for what is no id of a response."""
    if not id.startswith("resp_"):
        raise InvalidRequestError(
            f"Invalid '{param}': '{id[:80]}'. Expected an ID that begins with 'resp'.", param=param
        )


def inputs_of(record: AnswerRecord) -> list[Item]:
    """The items that a response answered, without those before."""
    return msgspec.json.decode(record.input, type=list[Item])


async def answered_items(context: ServerContext, record: AnswerRecord) -> list[Item]:
    """The items that a response answered: in a conversation also those before, as far as they are there."""
    earlier: list[AnswerRecord] = []
    if is_conversation(record.previous):
        with suppress(UnknownConversationError):
            conversation = await context.answers.get(record.previous, AnswerKind.CONVERSATION, record.owner)
            earlier = await item_records(context, conversation, until=record.until)
    return [*map(item_of, earlier), *inputs_of(record)]


def response_of(record: AnswerRecord) -> Response:
    """The response as clients are told of it."""
    return msgspec.json.decode(record.body, type=Response)


async def keep_response(context: ServerContext, owner: str, conversation: Conversation, response: Response) -> None:
    """Keep ``response``; where that is not possible it says itself that it is not stored."""
    record = AnswerRecord(
        id=response["id"],
        kind=AnswerKind.RESPONSE,
        owner=owner,
        model=response["model"],
        created=float(response["created_at"]),
        expires=context.answers.expiry(),
        previous=response["previous_response_id"] or (conversation.kept_in.id if conversation.kept_in else ""),
        until=conversation.until,
        metadata=msgspec.json.encode(response["metadata"]).decode(),
        input=msgspec.json.encode(conversation.new).decode(),
        body=msgspec.json.encode(response).decode(),
    )
    try:
        await context.answers.save(record, chain=conversation.chain)
    except ServerError as error:
        logger.warning("a response is not kept: %s", error)
        response["store"] = False


async def item_records(
    context: ServerContext, conversation: AnswerRecord, *, until: int | None = None, param: str = "conversation"
) -> list[AnswerRecord]:
    """The items of a kept conversation, oldest first, up to the number ``until``.

    Raises InvalidRequestError, of the field ``param``, where they are more than is read.
    """
    most, limit = context.config.max_messages, context.config.max_prompt_chars
    query = AnswerQuery(
        kind=AnswerKind.ITEM,
        owner=conversation.owner,
        now=context.answers.now(),
        limit=most + 1,
        ascending=True,
        until=until,
        previous=conversation.id,
    )
    rows = await context.answers.find(query)
    if len(rows) > most or sum(len(row.body) for row in rows) > 4 * limit:
        raise InvalidRequestError(
            f"{param}: the conversation holds more than {most} items (--max-messages) or {limit} characters "
            "(--max-prompt-chars), the limits of one request; delete some of its items, or begin another",
            param=param,
            code="string_above_max_length",
        )
    return rows


def item_of(record: AnswerRecord) -> Item:
    """An item as clients are told of it."""
    return msgspec.json.decode(record.body, type=Item)


async def keep_items(
    context: ServerContext, conversation: AnswerRecord, items: Sequence[Item], chain: Sequence[AnswerRecord] = ()
) -> None:
    """Keep ``items``, whose ids are made here, at the end of a conversation; its ``chain`` of records stays as long."""
    rows = [
        AnswerRecord(
            id=item["id"],
            kind=AnswerKind.ITEM,
            owner=conversation.owner,
            model="",
            created=context.answers.now(),
            expires=context.answers.expiry(),
            previous=conversation.id,
            input="[]",
            body=msgspec.json.encode(item).decode(),
        )
        for item in items
    ]
    await context.answers.save(*rows, chain=chain or (conversation,))


async def extend_conversation(context: ServerContext, conversation: Conversation, response: Response) -> None:
    """Keep what was answered, and the answer, where the conversation is kept. Raises ServerError."""
    if conversation.kept_in is not None and response["status"] in ("completed", "incomplete"):
        items = [*map(renewed, conversation.new), *response["output"]]
        await keep_items(context, conversation.kept_in, items, conversation.chain)


def renewed(item: Item) -> Item:
    """``item`` with an id that no other has: a client may send one twice, or another's."""
    return {**item, "id": _id_of(item["type"])}


def whole_item(item: Item) -> Item:
    """An input item as it is told of later: with an id and a type, a message's text as parts."""
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    whole = {**item, "type": kind}
    whole.setdefault("id", _id_of(kind))
    if kind == "message" and isinstance(text := item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        whole["content"] = [{"type": part, "text": text, **({"annotations": []} if part == "output_text" else {})}]
    if kind != "item_reference":
        whole.setdefault("status", "completed")
    return whole


def _id_of(kind: object) -> str:
    """An id for an item of that type, which is a client's word until the item is read."""
    return new_id(_PREFIXES.get(kind, "msg") if isinstance(kind, str) else "msg")
