"""Adapters and what each must answer, taken beforehand: alone, one request at a time, and not by the server.

``references.json`` is ``{"model": base, "answers": [...], "packages": {name: {"path": folder, "answers": [...]}}}``;
an answer is ``{"prompt": [token ids], "max_tokens": n, "text": greedy output}``.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "references.json"


@dataclass(frozen=True)
class Answer:
    """One prompt and the text that greedy decoding gives."""

    prompt: tuple[int, ...]
    max_tokens: int
    text: str

    @property
    def body(self) -> dict[str, Any]:
        """The request that asks for it, but for the model."""
        return {"prompt": list(self.prompt), "max_tokens": self.max_tokens, "temperature": 0, "ignore_eos": True}


@dataclass(frozen=True)
class Package:
    """An adapter package on disk."""

    name: str
    path: Path
    answers: tuple[Answer, ...]

    def archive(self) -> bytes:
        """Its files as one archive to upload."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in sorted(self.path.iterdir()):
                if file.suffix in (".json", ".safetensors"):
                    archive.write(file, file.name)
        return buffer.getvalue()


@dataclass(frozen=True)
class References:
    """A base, its own answers, and packages for it."""

    model: Path
    answers: tuple[Answer, ...]
    packages: tuple[Package, ...]

    @classmethod
    def read(cls, folder: Path) -> References:
        """Read ``folder/references.json``."""
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        packages = (
            Package(name, Path(entry["path"]), _answers(entry["answers"])) for name, entry in found["packages"].items()
        )
        return cls(Path(found["model"]), _answers(found["answers"]), tuple(packages))


def _answers(entries: list[dict[str, Any]]) -> tuple[Answer, ...]:
    return tuple(Answer(tuple(entry["prompt"]), entry["max_tokens"], entry["text"]) for entry in entries)
