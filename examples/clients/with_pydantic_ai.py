"""Pydantic AI: agents with typed output and with tools."""

from __future__ import annotations

from typing import Literal

from address import API_KEY, MODEL, URL
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "What is the weather in Paris?"
model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=API_KEY))
SETTINGS = {"max_tokens": 256, "temperature": 0.0}


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    sky: Literal["clear", "cloudy", "rain"]


def text() -> str:
    """One answer, whole."""
    return Agent(model, model_settings=SETTINGS).run_sync(QUESTION).output


def typed() -> Weather:
    """The answer as an object: by a tool that takes it, and by the form of the answer itself."""
    for form in (ToolOutput(Weather), NativeOutput(Weather)):
        weather = Agent(model, output_type=form, model_settings=SETTINGS).run_sync(QUESTION).output
        assert isinstance(weather, Weather)
    return weather


def tools() -> str:
    """An agent that may look the weather up, and answers with text."""
    agent = Agent(model, model_settings=SETTINGS)

    @agent.tool_plain
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city."""
        return f"clear in {city}"

    return agent.run_sync(QUESTION).output


def main() -> None:
    """Run all of it."""
    for example in (text, typed, tools):
        print(f"{example.__name__}: {example()!r}")


if __name__ == "__main__":
    main()
