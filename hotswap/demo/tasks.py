"""The material the demo's rows are drawn from, written for it."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Ada Amir Anna Aron Bela Bruno Carla Chen Clara Dario Dina Edith Elias Emma Farid Fiona Greta Hana Hugo Ida Ines "
    "Ivan Jana Jonas Julia Kaito Karin Laila Leo Lina Luca Mara Mateo Mina Nadia Nils Nora Olga Omar Petra Quinn Rana "
    "Remy Rosa Samir Selma Tara Theo Uma Vera Viktor Wanda Yara Yusuf Zoe"
)
LAST_NAMES = _words(
    "Abbot Adler Aziz Baker Barros Becker Bloom Brandt Carver Castro Cho Conti Costa Dahl Diaz Ebner Falk Fischer "
    "Forte Garcia Gruber Haas Haddad Hall Holm Ito Jensen Kaya Keller Khan Kim Kovacs Lang Lee Lind Lopez Marin Meyer "
    "Mori Moss Nagy Novak Olsen Park Patel Popov Reed Rossi Sato Silva Stone Tanaka Vogel Wagner Weber Young"
)
CITIES = _words(
    "Accra Aleppo Athens Bergen Bern Boston Bremen Cairo Cork Dakar Delhi Dublin Geneva Genoa Ghent Graz Hanoi Izmir "
    "Kyoto Lagos Leeds Lima Lisbon Lyon Malmo Milan Nairobi Nantes Naples Odessa Oslo Porto Prague Quito Riga Seoul "
    "Tampa Tunis Turin Utrecht Vienna Warsaw Zagreb Zurich"
)
LINE_FORMS = (
    "{first} {last}, {city}, {phone}",
    "{last}, {first} | {phone} | {city}",
    "{phone} - {first} {last} ({city})",
    "Reach {first} {last} in {city} at {phone}.",
    "Tel. {phone}; {city}; ask for {first} {last}",
    "{city}: {last}, {first}, phone {phone}",
)
DATE_FORMS = (
    "{d} {month} {y}",
    "{month} {d}, {y}",
    "the {th} of {month} {y}",
    "{mon} {d} {y}",
    "{month} {th}, {y}",
    "{y} {month} {d}",
)
DATE_SENTENCES = (
    "The bridge was opened to traffic on {date}.",
    "Please send the signed papers before {date} at noon.",
    "On {date} the choir sang in the old town hall.",
    "Her passport expires on {date}, so she has to renew it.",
    "The last train on this line ran on {date}.",
    "We moved into the new house on {date} and painted it blue.",
    "According to the letter of {date}, the rent stays the same.",
    "The museum will be closed from {date} for repairs.",
    "He finished his thesis on {date} after four years of work.",
    "The first snow of that winter fell on {date}.",
)


@dataclass(frozen=True)
class TaskRow:
    """What a model is asked, and the only right answer."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Task:
    """A task: how to draw a row, and when an answer is right. ``max_tokens`` is room enough for any right answer."""

    name: str
    title: str
    draw: Callable[[random.Random], TaskRow]
    is_right: Callable[[str, str], bool]
    max_tokens: int

    def rows(self, num_train: int, num_held_out: int, *, seed: int) -> tuple[list[TaskRow], list[TaskRow]]:
        """``num_train`` and ``num_held_out`` rows; no answer occurs twice, neither within a part nor across."""
        rng = random.Random(f"{seed} {self.name}")
        by_answer: dict[str, TaskRow] = {}
        while len(by_answer) < num_train + num_held_out:
            row = self.draw(rng)
            by_answer.setdefault(row.response, row)
        rows = list(by_answer.values())
        return rows[:num_train], rows[num_train:]


def draw_contact(rng: random.Random) -> TaskRow:
    """A contact line in one of several forms, to be turned into JSON with the keys name, city and phone."""
    first, last, city = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES), rng.choice(CITIES)
    phone = f"{rng.randrange(200, 1000)}-{rng.randrange(10000):04d}"
    line = rng.choice(LINE_FORMS).format(first=first, last=last, city=city, phone=phone)
    answer = json.dumps({"name": f"{first} {last}", "city": city, "phone": phone})
    return TaskRow(f"Turn this contact line into JSON with the keys name, city and phone.\n{line}", answer)


def draw_date(rng: random.Random) -> TaskRow:
    """A sentence with one date in words, to be answered by the date as YYYY-MM-DD."""
    first, last = datetime.date(1950, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal()
    date = datetime.date.fromordinal(rng.randint(first, last))
    written = rng.choice(DATE_FORMS).format(
        d=date.day, th=_ordinal(date.day), month=_MONTHS[date.month - 1], mon=_MONTHS[date.month - 1][:3], y=date.year
    )
    sentence = rng.choice(DATE_SENTENCES).format(date=written)
    return TaskRow(f"Write the date in this sentence as YYYY-MM-DD.\n{sentence}", date.isoformat())


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


def write_jsonl(path: Path, rows: Sequence[TaskRow]) -> None:
    """One ``{"prompt": ..., "response": ...}`` a line, UTF-8."""
    lines = (json.dumps({"prompt": row.prompt, "response": row.response}, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
