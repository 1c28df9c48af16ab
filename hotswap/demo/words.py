"""The material the demo's rows are drawn from, written for it."""

from __future__ import annotations


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
