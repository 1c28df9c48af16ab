"""Instructor: objects instead of text, by tools and by JSON."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
from address import API_KEY, MODEL, URL
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    sky: Literal["clear", "cloudy", "rain"]


def ask(mode: instructor.Mode) -> Weather:
    """The answer as an object, asked for in the way of ``mode``."""
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key=API_KEY), mode=mode)
    return client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_model=Weather, max_tokens=256, max_retries=0
    )


def main() -> None:
    """Run all of it."""
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        print(f"{mode.name}: {ask(mode)!r}")


if __name__ == "__main__":
    main()
