"""LiteLLM: chats, streams, tools, completions and embeddings, over OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network for prices

import litellm
from address import API_KEY, MODEL, URL

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
SERVER = {"api_base": f"{URL}/v1", "api_key": API_KEY}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


def chat() -> str:
    """One answer, whole."""
    answer = litellm.completion(f"openai/{MODEL}", QUESTION, max_tokens=32, **SERVER)
    assert answer.usage.total_tokens > 0
    return str(answer.choices[0].message.content)


def stream() -> str:
    """One answer as it comes, from a server of vLLM's kind."""
    chunks = list(litellm.completion(f"hosted_vllm/{MODEL}", QUESTION, max_tokens=32, stream=True, **SERVER))
    return str(litellm.stream_chunk_builder(chunks).choices[0].message.content)


def tools() -> str:
    """A tool is called."""
    answer = litellm.completion(
        f"openai/{MODEL}", QUESTION, tools=[TOOL], tool_choice="required", max_tokens=256, **SERVER
    )
    return str(answer.choices[0].message.tool_calls[0].function.arguments)


def complete() -> str:
    """A text goes on, without a conversation."""
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="The weather in Paris is", max_tokens=8, **SERVER
    )
    return str(answer.choices[0].text)


def embed() -> int:
    """Texts as vectors; how long these are."""
    answer = litellm.embedding(f"openai/{MODEL}", ["clear", "cloudy"], encoding_format="float", **SERVER)
    assert len(answer.data) == 2
    return len(answer.data[0]["embedding"])


def anthropic_messages() -> str:
    """The same over /v1/messages."""
    answer = litellm.completion(f"anthropic/{MODEL}", QUESTION, max_tokens=32, api_base=URL, api_key=API_KEY)
    return str(answer.choices[0].message.content)


def main() -> None:
    """Run all of it."""
    for example in (chat, stream, tools, complete, embed, anthropic_messages):
        print(f"{example.__name__}: {example()!r}")


if __name__ == "__main__":
    main()
