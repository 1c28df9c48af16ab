"""How bases write calls: the formats by name, and which one a chat template asks for."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

from server.text.output.calls import CallParser
from server.text.output.channels import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START, ChannelParser
from server.text.output.json_calls import (
    DeepSeekParser,
    GenericParser,
    GraniteParser,
    KimiParser,
    ListParser,
    LlamaParser,
    MistralParser,
)
from server.text.output.pythonic_calls import PythonicParser
from server.text.output.tagged_calls import MiniMaxParser, TaggedParser

_LETTERS = string.ascii_letters + string.digits


def _id() -> str:
    return "call_" + secrets.token_hex(12)


def short_id() -> str:
    """Nine letters and digits: Mistral's templates take no other."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


@dataclass(frozen=True)
class CallFormat:
    """How calls are written. ``marks`` around them may be special tokens, which text does not show otherwise.

    ``opener`` is what nothing but a call begins with, where there is such a mark.
    """

    name: str
    parser: type[CallParser]
    marks: tuple[str, ...] = ()
    opener: str | None = None
    make_id: Callable[[], str] = _id


_TAGS = ("<tool_call>", "</tool_call>")
_GLM_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
HERMES = CallFormat("hermes", TaggedParser, _TAGS, _TAGS[0])
QWEN_CODER = CallFormat("qwen3_coder", TaggedParser, _TAGS, _TAGS[0])
GLM = CallFormat("glm45", TaggedParser, _TAGS + _GLM_TAGS, _TAGS[0])
LLAMA = CallFormat("llama3_json", LlamaParser, LlamaParser.openers)
_MISTRAL_MARKS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
MISTRAL = CallFormat("mistral", MistralParser, _MISTRAL_MARKS, _MISTRAL_MARKS[0], short_id)
MISTRAL_NAMED = CallFormat("mistral_named", MistralParser, _MISTRAL_MARKS, _MISTRAL_MARKS[0], short_id)
DEEPSEEK = CallFormat("deepseek_v31", DeepSeekParser, DeepSeekParser.marks, DeepSeekParser.marks[0])
DEEPSEEK_FENCED = CallFormat("deepseek_v3", DeepSeekParser, DeepSeekParser.marks, DeepSeekParser.marks[0])
KIMI = CallFormat("kimi_k2", KimiParser, KimiParser.marks, KimiParser.marks[0])
MINIMAX = CallFormat(
    "minimax_m2", MiniMaxParser, MiniMaxParser.openers[:1] + MiniMaxParser.closers, MiniMaxParser.openers[0]
)
PYTHONIC = CallFormat("pythonic", PythonicParser, PythonicParser.openers + PythonicParser.closers)
GRANITE = CallFormat("granite", GraniteParser, GraniteParser.openers + GraniteParser.closers, GraniteParser.openers[0])
CHANNELS = CallFormat("gpt_oss", ChannelParser, (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS))
LISTED = CallFormat("json_list", ListParser, ListParser.openers + ListParser.closers)
GENERIC = CallFormat("json", GenericParser)
FORMATS = {
    found.name: found
    for found in (
        *(HERMES, QWEN_CODER, GLM, LLAMA, MISTRAL, MISTRAL_NAMED, DEEPSEEK, DEEPSEEK_FENCED, KIMI, MINIMAX),
        *(PYTHONIC, GRANITE, CHANNELS, LISTED, GENERIC),
    )
}
_OTHER_NAMES = {
    "qwen": "hermes", "qwen25": "hermes", "qwen3": "hermes", "longcat": "hermes", "smollm3": "hermes",
    "qwen3_xml": "qwen3_coder", "glm": "glm45", "glm47": "glm45", "llama3": "llama3_json",
    "llama4_json": "llama3_json", "llama4_pythonic": "pythonic", "llama3_2_pythonic": "pythonic", "olmo3": "pythonic",
    "lfm2": "pythonic", "deepseek": "deepseek_v3", "deepseek_r1": "deepseek_v3",
    "granite-20b-fc": "granite", "jamba": "json_list", "nemotron": "json_list", "phi4_mini_json": "json_list",
    "harmony": "gpt_oss", "openai": "gpt_oss",
    "kimi": "kimi_k2", "minimax": "json_list", "minimax_m1": "json_list", "generic": "json", "xlam": "json",
}  # fmt: skip
NAMES = (*FORMATS, *_OTHER_NAMES)
_TOLD_BY = (  # the first that a template holds
    ((CHANNEL, MESSAGE, START), CHANNELS),
    (("<function=", "<parameter="), QWEN_CODER),
    (("<arg_key>",), GLM),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<｜tool▁call▁begin｜>", "```json"), DEEPSEEK_FENCED),
    (("<｜tool▁call▁begin｜>",), DEEPSEEK),
    (("<|tool_call_argument_begin|>",), KIMI),
    (("minimax:tool_call>", "<invoke name="), MINIMAX),
    (("<|tool_call_start|>",), PYTHONIC),
    (("<|python_start|>",), PYTHONIC),
    (("[func_name1(",), PYTHONIC),
    (("<function_calls>",), PYTHONIC),
    (("<TOOLCALL>",), LISTED),
    (("<tool_calls>",), LISTED),
    (("<|/tool_call|>",), LISTED),
    (("functools[",), LISTED),
    (("<|tool_call|>",), GRANITE),
    (("<tool_call>",), HERMES),
    (("<|python_tag|>",), LLAMA),
    (('"parameters":',), LLAMA),
)


def named_format(name: str) -> CallFormat:
    """The format of one of ``NAMES``."""
    return FORMATS[_OTHER_NAMES.get(name, name)]


def find_format(template: str) -> CallFormat:
    """The format that a chat template which knows tools asks for; JSON alone where it says none."""
    return next((found for marks, found in _TOLD_BY if all(mark in template for mark in marks)), GENERIC)
