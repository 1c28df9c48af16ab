"""``/v1/conversations``: items that are kept, which responses go on from and are added to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import Response

from server.api.auth import Caller, InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import json_response
from server.api.pages import page_body
from server.api.renaming import told_as
from server.api.responses.body import MAX_ID, Items
from server.api.responses.items import Item, messages_of
from server.api.responses.keeping import item_of, item_records, keep_items, renewed, whole_item
from server.api.responses.outputs import new_id
from server.api.wire_fields import Metadata, MetadataBody, Wire
from server.catalog.answers import AnswerKind, AnswerQuery, AnswerRecord
from server.catalog.kept_answers import UnknownItemError

router = APIRouter()
PATH = "/v1/conversations"
MAX_ITEMS = 20  # added at once


class NewConversationBody(Wire):
    """``POST /v1/conversations``."""

    metadata: Metadata | None = None
    items: Items | None = Field(None, max_length=MAX_ITEMS)


class NewItemsBody(Wire):
    """``POST /v1/conversations/{id}/items``."""

    items: Items = Field(max_length=MAX_ITEMS)


@router.post(PATH, response_model=None)
async def create_conversation(
    caller: InferenceKey,
    context: ContextDep,
    body: Annotated[NewConversationBody, Depends(json_body(NewConversationBody))],
) -> Response:
    """Begin a conversation, with items if there are some."""
    items = _checked(body.items or [])
    id, created = new_id("conv"), int(time.time())
    told = {"id": id, "object": "conversation", "created_at": created, "metadata": body.metadata or {}}
    record = AnswerRecord(
        id=id,
        kind=AnswerKind.CONVERSATION,
        owner=caller.owner,
        model="",
        created=float(created),
        expires=context.answers.expiry(),
        input="[]",
        body=msgspec.json.encode(told).decode(),
    )
    await context.answers.save(record)
    await keep_items(context, record, items)
    return json_response(told)


@router.get(PATH + "/{conversation_id}", response_model=None)
async def retrieve_conversation(caller: InferenceKey, context: ContextDep, conversation_id: str) -> Response:
    """A conversation."""
    return json_response(item_of(await _kept(context, caller, conversation_id)))


@router.post(PATH + "/{conversation_id}", response_model=None)
async def update_conversation(
    caller: InferenceKey,
    context: ContextDep,
    conversation_id: str,
    body: Annotated[MetadataBody, Depends(json_body(MetadataBody))],
) -> Response:
    """Give a conversation other metadata."""
    record = await _kept(context, caller, conversation_id)
    told = item_of(record) | {"metadata": body.metadata or {}}
    await context.answers.save(msgspec.structs.replace(record, body=msgspec.json.encode(told).decode()))
    return json_response(told)


@router.delete(PATH + "/{conversation_id}", response_model=None)
async def delete_conversation(caller: InferenceKey, context: ContextDep, conversation_id: str) -> Response:
    """Keep a conversation and its items no longer."""
    record = await _kept(context, caller, conversation_id)
    await context.answers.forget(record.id)
    return json_response({"id": record.id, "object": "conversation.deleted", "deleted": True})


@router.post(PATH + "/{conversation_id}/items", response_model=None)
async def add_items(
    caller: InferenceKey,
    context: ContextDep,
    conversation_id: str,
    body: Annotated[NewItemsBody, Depends(json_body(NewItemsBody))],
) -> Response:
    """Add items to the end of a conversation."""
    record = await _kept(context, caller, conversation_id)
    with await context.answers.turns.take(record.id, param="conversation_id"):
        rows = await item_records(context, record)
        items = _checked(body.items, list(map(item_of, rows)))
        await keep_items(context, record, items, [record, *rows])
    return json_response(page_body(items, len(items)))


@router.get(PATH + "/{conversation_id}/items", response_model=None)
async def list_items(
    caller: InferenceKey,
    context: ContextDep,
    conversation_id: str,
    *,
    after: Annotated[str | None, Query(max_length=MAX_ID)] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The items of a conversation, the newest first."""
    record = await _kept(context, caller, conversation_id)
    query = AnswerQuery(
        kind=AnswerKind.ITEM,
        owner=caller.owner,
        now=context.answers.now(),
        limit=limit + 1,
        after=None if after is None else (await _item(context, record, after)).number,
        ascending=order == "asc",
        previous=record.id,
    )
    return json_response(page_body(list(map(item_of, await context.answers.find(query))), limit))


@router.get(PATH + "/{conversation_id}/items/{item_id}", response_model=None)
async def retrieve_item(caller: InferenceKey, context: ContextDep, conversation_id: str, item_id: str) -> Response:
    """An item of a conversation."""
    return json_response(item_of(await _item(context, await _kept(context, caller, conversation_id), item_id)))


@router.delete(PATH + "/{conversation_id}/items/{item_id}", response_model=None)
async def delete_item(caller: InferenceKey, context: ContextDep, conversation_id: str, item_id: str) -> Response:
    """Take an item out of a conversation."""
    record = await _kept(context, caller, conversation_id)
    await context.answers.forget((await _item(context, record, item_id)).id)
    return json_response(item_of(record))


async def _kept(context: ServerContext, caller: Caller, id: str) -> AnswerRecord:
    return await context.answers.get(id, AnswerKind.CONVERSATION, caller.owner)


async def _item(context: ServerContext, conversation: AnswerRecord, id: str) -> AnswerRecord:
    record = await context.answers.get(id, AnswerKind.ITEM, conversation.owner)
    if record.previous != conversation.id:
        raise UnknownItemError(f"Item with id '{id[:80]}' not found.")
    return record


def _checked(new: Sequence[Item], earlier: Sequence[Item] = ()) -> list[dict[str, Any]]:
    """``new`` items as they are kept behind ``earlier`` ones. InvalidRequestError: no model could read them."""
    items = [renewed(whole_item(item)) for item in new]
    with told_as({"input": "items"}):
        messages_of([*earlier, *items], earlier=len(earlier), source="conversation_id")
    return items
