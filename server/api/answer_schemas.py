"""What answers look like, as JSON Schema, by method and path; of a path that is not here, anything."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
SWITCH: Schema = {"type": "boolean"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}


def const(value: str) -> Schema:
    """This text alone."""
    return {"type": "string", "const": value}


def record(**fields: Schema) -> Schema:
    """An object that has all of ``fields``; there may be more."""
    return {"type": "object", "required": list(fields), "properties": fields}


def many(item: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": item}


def nullable(schema: Schema) -> Schema:
    """``schema``, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(item: Schema, **more: Schema) -> Schema:
    """OpenAI's lists."""
    return record(object=const("list"), data=many(item), **more)


ERROR = record(error=record(message=TEXT, type=TEXT, param=MAYBE_TEXT, code=MAYBE_TEXT))
MESSAGES_ERROR = record(type=const("error"), error=record(type=TEXT, message=TEXT), request_id=MAYBE_TEXT)
EVENT = record(data=TEXT)  # of a stream

_USAGE = record(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
_HEAD = {"id": TEXT, "created": COUNT, "model": TEXT}
_ENDED = {"index": COUNT, "logprobs": nullable({"type": "object"}), "finish_reason": MAYBE_TEXT}
_MESSAGE = record(role=const("assistant"), content=MAYBE_TEXT, refusal=MAYBE_TEXT)
_CHAT = record(object=const("chat.completion"), **_HEAD, choices=many(record(message=_MESSAGE, **_ENDED)), usage=_USAGE)
_COMPLETION = record(object=const("text_completion"), **_HEAD, choices=many(record(text=TEXT, **_ENDED)), usage=_USAGE)
_RESPONSE = record(
    id=TEXT, object=const("response"), created_at=NUMBER, model=TEXT, status=TEXT, output=many(record(type=TEXT))
)
_CONVERSATION = record(id=TEXT, object=const("conversation"), created_at=COUNT, metadata={"type": "object"})
_ITEM = record(id=TEXT, type=TEXT)
_ITEMS = listed(_ITEM, first_id=MAYBE_TEXT, last_id=MAYBE_TEXT, has_more=SWITCH)
_MESSAGES_ANSWER = record(
    id=TEXT,
    type=const("message"),
    role=const("assistant"),
    model=TEXT,
    content=many(record(type=TEXT)),
    stop_reason=MAYBE_TEXT,
    usage=record(input_tokens=COUNT, output_tokens=COUNT),
)
_EMBEDDING = record(
    object=const("embedding"), index=COUNT, embedding={"anyOf": [many(NUMBER), many(many(NUMBER)), TEXT]}
)
_MODEL = record(id=TEXT, object=const("model"), created=COUNT, owned_by=TEXT)
_ADAPTER = record(object=const("adapter"), name=TEXT, etag=TEXT, versions=many({"type": "object"}))
_FILE = record(id=TEXT, object=const("file"), bytes=COUNT, created_at=COUNT, filename=TEXT, purpose=TEXT)
_UPLOAD = record(
    id=TEXT, object=const("upload"), bytes=COUNT, created_at=COUNT, expires_at=COUNT, status=TEXT, file=nullable(_FILE)
)
_DELETED = record(id=TEXT, deleted=SWITCH)
_TOKENS = record(count=COUNT, max_model_len=nullable(COUNT), tokens=many(COUNT), token_strs=nullable(many(MAYBE_TEXT)))
_EVENT = record(object=const("event"), id=COUNT, time=NUMBER, actor=TEXT, action=TEXT)

ANSWERS: dict[tuple[str, str], Schema] = {
    ("POST", "/v1/chat/completions"): _CHAT,
    ("POST", "/v1/chat/completions/batch"): _CHAT,
    ("POST", "/v1/completions"): _COMPLETION,
    ("POST", "/v1/responses"): _RESPONSE,
    ("GET", "/v1/responses/{response_id}"): _RESPONSE,
    ("DELETE", "/v1/responses/{response_id}"): _DELETED,
    ("GET", "/v1/responses/{response_id}/input_items"): listed(record(type=TEXT)),
    ("POST", "/v1/responses/input_tokens"): record(object=const("response.input_tokens"), input_tokens=COUNT),
    ("POST", "/v1/conversations"): _CONVERSATION,
    ("GET", "/v1/conversations/{conversation_id}"): _CONVERSATION,
    ("POST", "/v1/conversations/{conversation_id}"): _CONVERSATION,
    ("DELETE", "/v1/conversations/{conversation_id}"): _DELETED,
    ("POST", "/v1/conversations/{conversation_id}/items"): _ITEMS,
    ("GET", "/v1/conversations/{conversation_id}/items"): _ITEMS,
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): _ITEM,
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): _CONVERSATION,
    ("POST", "/v1/messages"): _MESSAGES_ANSWER,
    ("POST", "/v1/messages/count_tokens"): record(input_tokens=COUNT),
    ("POST", "/v1/embeddings"): listed(_EMBEDDING, model=TEXT, usage=record(prompt_tokens=COUNT, total_tokens=COUNT)),
    ("POST", "/v2/embed"): record(id=TEXT, embeddings={"type": "object"}, texts=many(TEXT), meta={"type": "object"}),
    ("GET", "/v1/models"): listed(_MODEL),
    ("GET", "/v1/models/{model}"): _MODEL,
    ("DELETE", "/v1/models/{model}"): _DELETED,
    ("GET", "/v1/adapters"): listed(_ADAPTER),
    ("GET", "/v1/adapters/{name}"): _ADAPTER,
    ("GET", "/v1/keys"): listed(record(id=TEXT)),
    ("GET", "/v1/events"): listed(_EVENT, next=nullable({})),
    ("POST", "/v1/files"): _FILE,
    ("GET", "/v1/files"): listed(_FILE, has_more=SWITCH),
    ("GET", "/v1/files/{file_id}"): _FILE,
    ("DELETE", "/v1/files/{file_id}"): _DELETED,
    ("POST", "/v1/uploads"): _UPLOAD,
    ("POST", "/v1/uploads/{upload_id}/parts"): record(
        id=TEXT, object=const("upload.part"), created_at=COUNT, upload_id=TEXT
    ),
    ("POST", "/v1/uploads/{upload_id}/complete"): _UPLOAD,
    ("POST", "/v1/uploads/{upload_id}/cancel"): _UPLOAD,
    ("POST", "/tokenize"): _TOKENS,
    ("POST", "/v1/tokenize"): _TOKENS,
    ("POST", "/detokenize"): record(prompt=TEXT),
    ("POST", "/v1/detokenize"): record(prompt=TEXT),
    ("GET", "/tokenizer_info"): record(tokenizer_class=TEXT, chat_template=MAYBE_TEXT),
    ("GET", "/v1/tokenizer_info"): record(tokenizer_class=TEXT, chat_template=MAYBE_TEXT),
    ("GET", "/health"): record(status=const("ok")),
    ("GET", "/ping"): record(status=const("ok")),
    ("POST", "/ping"): record(status=const("ok")),
    ("GET", "/ready"): record(status=const("ready")),
    ("GET", "/version"): record(version=TEXT),
    ("GET", "/load"): record(server_load=COUNT),
}

PLAIN = {("GET", "/metrics"), ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter")}
"""What is answered with text."""

PERHAPS_BYTES = {("POST", "/v1/embeddings"), ("POST", "/v1/pooling")}
"""What is answered with bytes where that is asked for."""

BYTES = {("GET", "/v1/files/{file_id}/content")}
"""What is answered with what was sent."""
