"""Templates by name, against the text that each is known to write; and what a run may not train on."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bases.tool_text import template_tool
from tests.factory import CHAT_TEMPLATE, make_tokenizer
from trainer.config.data import DataConfig
from trainer.data.messages import Conversation, Message
from trainer.data.rendering import TEMPLATES, is_foreign, make_renderer, template_name, template_text
from trainer.errors import DataError

TURNS = (Message("user", "你好"), Message("assistant", "A1"), Message("user", "Q2"), Message("assistant", "A2"))
SYSTEM = (Message("system", "S"), *TURNS)
EOS = "<|im_end|>"
EXPECTED = {  # ‖ is where the last answer begins
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n‖A2<|im_end|>\n",
    "llama2": f"<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n你好 [/INST] A1 {EOS}<s>[INST] Q2 [/INST]‖ A2 {EOS}",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n‖A2<|eot_id|>",
    "mistral": f"<s>[INST] S\n\n你好 [/INST] A1{EOS}[INST] Q2 [/INST]‖ A2{EOS}",
    "alpaca": f"S\n\n### Instruction:\n你好\n\n### Response:\nA1{EOS}\n\n### Instruction:\nQ2\n\n"
    f"### Response:\n‖A2{EOS}\n\n",
    "vicuna": f"S USER: 你好 ASSISTANT: A1{EOS}USER: Q2 ASSISTANT: ‖A2{EOS}",
    "zephyr": f"<|system|>\nS{EOS}\n<|user|>\n你好{EOS}\n<|assistant|>\nA1{EOS}\n"
    f"<|user|>\nQ2{EOS}\n<|assistant|>\n‖A2{EOS}\n",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\n你好<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n"
    "<|assistant|>\n‖A2<|end|>\n",
    "gemma": "<s><start_of_turn>user\nS\n\n你好<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n‖A2<end_of_turn>\n",
    "chatglm": "S\n\n[Round 0]\n问：你好\n答：A1\n[Round 1]\n问：Q2\n答：‖A2",
    "chatglm2": "S\n\n[Round 1]\n\n问：你好\n\n答：A1\n\n[Round 2]\n\n问：Q2\n\n答：‖A2",
}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<s>"
    return tokenizer


def rendered(tokenizer: Any, template: str, conversation: Conversation) -> tuple[str, str]:
    """The prompt of the last answer, and what is learned of it with all that the template writes after."""
    renderer = make_renderer(DataConfig(path="x", template=template), tokenizer)
    segments = renderer.segments(conversation)
    *before, last = [segment.text for segment in segments]
    assert "".join(before) == renderer.prompt(conversation[:-1]).text
    assert [segment.learned for segment in segments] == [False, True, False, True]
    return "".join(before), last


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates_write_what_they_are_known_for(tokenizer: Any, name: str) -> None:
    assert rendered(tokenizer, name, SYSTEM) == tuple(EXPECTED[name].split("‖"))


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\n你好\n\n### Response:\nA1",
        ),
        (
            "vicuna",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions. USER: 你好 ASSISTANT: A1",
        ),
        ("llama2", "<s>[INST] 你好 [/INST] A1"),
        ("mistral", "<s>[INST] 你好 [/INST] A1"),
        ("gemma", "<s><start_of_turn>user\n你好<end_of_turn>\n<start_of_turn>model\nA1"),
        ("chatglm2", "[Round 1]\n\n问：你好\n\n答：A1"),
    ],
)
def test_without_a_system_message(tokenizer: Any, name: str, beginning: str) -> None:
    assert rendered(tokenizer, name, TURNS)[0].startswith(beginning)


def test_the_base_s_own_template_is_not_foreign_whatever_it_is_called(tokenizer: Any) -> None:
    own = [DataConfig(path="x", template=template) for template in ("chat", "none", CHAT_TEMPLATE)]
    assert [is_foreign(config, tokenizer) for config in own] == [False, False, False]
    assert is_foreign(DataConfig(path="x", template="zephyr"), tokenizer)
    assert [template_name(config) for config in own] == ["chat", "none", "inline"]
    assert template_text(own[0], tokenizer) == CHAT_TEMPLATE


def test_an_inline_template_is_rendered(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m.role[0] }}={{ m.content }};{% endfor %}{% if add_generation_prompt %}a={% endif %}"
    )
    assert rendered(tokenizer, template, TURNS) == ("u=你好;a=A1;u=Q2;a=", "A2;")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("lama3", "'lama3' is no template; did you mean llama3"),
        ("{% for m in messages %}", "data.template is not valid Jinja: "),
        (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
            "no generation prompt: it writes '<assistant>' before an answer but not at the end of a prompt",
        ),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tokenizer: Any, template: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        make_renderer(DataConfig(path="x", template=template), tokenizer)
    assert words in str(caught.value)


def test_tools_are_left_to_templates_that_know_them_only(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"writes no tool calls; set data.tools: text"):
        make_renderer(DataConfig(path="x", tools="template"), tokenizer)
    template = (
        "{% if tools %}{{ tools | map(attribute='function.name') | join }}: {% endif %}{% for m in messages %}"
        "{{ m.role }}={{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments.x }})"
        "{% endfor %};"
        "{% endfor %}{% if add_generation_prompt %}assistant={% endif %}"
    )
    renderer = make_renderer(DataConfig(path="x", tools="template", template=template), tokenizer)
    call = Message("assistant", "", calls=('{"name": "f", "arguments": {"x": 1}}',))
    turns = (Message("user", "q"), call, Message("tool", "2"), Message("assistant", "a"))
    texts = [segment.text for segment in renderer.segments(turns, [template_tool({"name": "f"})])]
    assert texts == ["f: user=q;assistant=", "f(1);", "tool=2;assistant=", "a;"]
