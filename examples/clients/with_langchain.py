"""LangChain: ChatOpenAI, ChatAnthropic and OpenAIEmbeddings."""

from __future__ import annotations

from typing import Literal

from address import API_KEY, MODEL, URL
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

QUESTION = "What is the weather in Paris?"
chat = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key=API_KEY, max_tokens=256)


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    sky: Literal["clear", "cloudy", "rain"]


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"clear in {city}"


def invoke() -> str:
    """One answer, whole, with its usage."""
    answer = chat.invoke(QUESTION)
    assert answer.usage_metadata is not None
    return str(answer.content)


def stream() -> str:
    """One answer as it comes."""
    return "".join(str(chunk.content) for chunk in chat.stream(QUESTION))


def structured() -> Weather:
    """An answer of a given form, in each way to ask for one."""
    for method in ("function_calling", "json_schema"):
        weather = chat.with_structured_output(Weather, method=method).invoke(QUESTION)
        assert isinstance(weather, Weather)
    return weather


def tools() -> str:
    """A tool is called, and the answer goes on from its result."""
    asked = chat.bind_tools([get_weather], tool_choice="any").invoke([HumanMessage(QUESTION)])
    assert asked.tool_calls
    results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in asked.tool_calls]
    return str(chat.invoke([HumanMessage(QUESTION), asked, *results]).content)


def embed() -> int:
    """Texts as vectors; how long these are. They go as text: token ids would be those of another tokenizer."""
    embeddings = OpenAIEmbeddings(model=MODEL, base_url=f"{URL}/v1", api_key=API_KEY, check_embedding_ctx_length=False)
    assert len(embeddings.embed_documents(["clear", "cloudy"])) == 2
    return len(embeddings.embed_query("rain"))


def anthropic_messages() -> str:
    """The same over /v1/messages."""
    return str(ChatAnthropic(model=MODEL, base_url=URL, api_key=API_KEY, max_tokens=32).invoke(QUESTION).content)


def main() -> None:
    """Run all of it."""
    for example in (invoke, stream, structured, tools, embed, anthropic_messages):
        print(f"{example.__name__}: {example()!r}")


if __name__ == "__main__":
    main()
