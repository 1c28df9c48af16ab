"""The two tasks of the demo: contact lines to JSON, and dates in sentences to ISO form.

All data is drawn here from a seed, so nobody's data is copied, and a model cannot have seen it. Held-out rows share no
answer with training rows. It does not know how a model is trained or asked.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotswap.demo.words import CITIES, DATE_FORMS, DATE_SENTENCES, FIRST_NAMES, LAST_NAMES, LINE_FORMS


@dataclass(frozen=True)
class Row:
    """What a model is asked, and the only right answer."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Task:
    """A task: how to draw a row, and when an answer is right. ``max_tokens`` is room enough for any right answer."""

    name: str
    title: str
    draw: Callable[[random.Random], Row]
    is_right: Callable[[str, str], bool]
    max_tokens: int

    def rows(self, num_train: int, num_held_out: int, *, seed: int) -> tuple[list[Row], list[Row]]:
        """``num_train`` and ``num_held_out`` rows; no answer occurs twice, neither within a part nor across."""
        rng = random.Random(f"{seed} {self.name}")
        by_answer: dict[str, Row] = {}
        while len(by_answer) < num_train + num_held_out:
            row = self.draw(rng)
            by_answer.setdefault(row.response, row)
        rows = list(by_answer.values())
        return rows[:num_train], rows[num_train:]


def draw_contact(rng: random.Random) -> Row:
    """A contact line in one of several forms, to be turned into JSON with the keys name, city and phone."""
    first, last, city = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES), rng.choice(CITIES)
    phone = f"{rng.randrange(200, 1000)}-{rng.randrange(10000):04d}"
    line = rng.choice(LINE_FORMS).format(first=first, last=last, city=city, phone=phone)
    answer = json.dumps({"name": f"{first} {last}", "city": city, "phone": phone})
    return Row(f"Turn this contact line into JSON with the keys name, city and phone.\n{line}", answer)


def draw_date(rng: random.Random) -> Row:
    """A sentence with one date in words, to be answered by the date as YYYY-MM-DD."""
    first, last = datetime.date(1950, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal()
    date = datetime.date.fromordinal(rng.randint(first, last))
    written = rng.choice(DATE_FORMS).format(
        d=date.day, th=_ordinal(date.day), month=_MONTHS[date.month - 1], mon=_MONTHS[date.month - 1][:3], y=date.year
    )
    sentence = rng.choice(DATE_SENTENCES).format(date=written)
    return Row(f"Write the date in this sentence as YYYY-MM-DD.\n{sentence}", date.isoformat())


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


def _ordinal(day: int) -> str:
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def same_json(answer: str, wanted: str) -> bool:
    """Whether ``answer`` is, apart from surrounding space, a JSON document equal to ``wanted``."""
    try:
        return bool(json.loads(answer) == json.loads(wanted))
    except ValueError:
        return False


def same_text(answer: str, wanted: str) -> bool:
    """Whether ``answer`` is ``wanted``, apart from surrounding space."""
    return answer.strip() == wanted


CONTACTS = Task("contacts", "contact line to JSON", draw_contact, same_json, max_tokens=48)
DATES = Task("dates", "date in a sentence to ISO form", draw_date, same_text, max_tokens=24)


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """One ``{"prompt": ..., "response": ...}`` a line, UTF-8."""
    lines = (json.dumps({"prompt": row.prompt, "response": row.response}, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
