"""Asks again, one question at a time with nothing else running: what the answers under load are compared with.

The replaced version is uploaded once more under a name of its own: a version is its content, so it is the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import track

from hotswap.demo.asking import Answer, Asker, Question
from hotswap.demo.checks import OLD
from hotswap.demo.comparison import Key, key_of

OLD_NAME = "contacts-old"


async def ask_alone(
    asker: Asker, under_load: Sequence[Answer], prompts: set[str], console: Console
) -> dict[Key, Answer]:
    """The lone answer to every question of ``under_load`` about one of ``prompts``, by the key of that question.

    ``OLD_NAME`` must serve the replaced version. ``asker`` should have a salt, so that nothing computed under load is
    used again.
    """
    complete = {key_of(a): a for a in under_load if a.error is None and a.question.prompt in prompts}
    lone = {}
    for key, answer in track(complete.items(), description="  alone", console=console):
        lone[key] = await asker.ask(_again(answer))
    return lone


def _again(answer: Answer) -> Question:
    return replace(answer.question, model=OLD_NAME) if answer.version == OLD else answer.question
