"""Every request of a load test as it went, kept in a file, so that runs can be compared later."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from loadtests.client import Outcome

NAME = "requests.jsonl.gz"
Results = Sequence[tuple[str, Sequence[Outcome]]]


def write_samples(folder: Path, results: Results) -> None:
    """Write ``results`` (load, outcomes) into ``folder``: a line a request; times in seconds from the run's start."""
    with gzip.open(folder / NAME, "wt", encoding="utf-8") as file:
        for load, outcomes in results:
            begin = min((outcome.start for outcome in outcomes), default=0.0)
            for outcome in outcomes:
                file.write(json.dumps({"load": load, **_told(outcome, begin)}) + "\n")


def _told(outcome: Outcome, begin: float) -> dict[str, object]:
    fields = dataclasses.asdict(outcome)
    fields["start"], fields["end"] = round(outcome.start - begin, 6), round(outcome.end - begin, 6)
    fields["stamps"] = [round(stamp - begin, 6) for stamp in outcome.stamps]
    return fields


def read_samples(path: Path) -> dict[str, list[Outcome]]:
    """The outcomes by load, of a file or of the folder it is in. Raises OSError, ValueError."""
    found: dict[str, list[Outcome]] = {}
    with gzip.open(path / NAME if path.is_dir() else path, "rt", encoding="utf-8") as file:
        for line in file:
            try:
                fields = json.loads(line)
                found.setdefault(fields.pop("load"), []).append(Outcome(**fields))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} does not hold the requests of a load test: {error}") from error
    return found


def loads_of(samples: Iterable[dict[str, list[Outcome]]]) -> list[str]:
    """The loads that all of ``samples`` have, in the order of the first."""
    first, *others = samples
    return [load for load in first if all(load in other for other in others)]
