"""What a publication asks for beside going live: a share of the requests, copies of them, and rules that end it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import PublishError
from trainer.serving.client import AdminClient, ServedVersion

_RULE = re.compile(r"(?P<name>[a-z]\w*)\s*=\s*(?P<number>\d+(?:\.\d*)?|\.\d+)")
_COUNTS = ("min_requests",)


@dataclass(frozen=True)
class Shares:
    """``canary`` is a share of the requests, ``shadow`` one of copies, 0 to 1; None: none. ``rules`` end the canary."""

    canary: float | None = None
    shadow: float | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> bool:
        """Whether anything is asked for; without, a publication goes live."""
        return self.canary is not None or self.shadow is not None

    def check(self, client: AdminClient, name: str) -> None:
        """Raise PublishError where there is nothing to share the requests with."""
        if self.asked and client.live(name) is None:
            raise PublishError(
                f"{name} serves no version yet that could answer the other requests; publish it without --canary and "
                "--shadow"
            )

    def begin(self, client: AdminClient, version: ServedVersion, *, expected_live: int | None = None) -> dict[str, Any]:
        """Let ``version`` have them; gives the server's answer. Raises PublishError."""
        return client.canary(
            version.name, version.version, self.canary,
            shadow=self.shadow, rules=self.rules, expected_live=expected_live,
        )  # fmt: skip

    def words(self, name: str) -> str:
        """What a version gets, to stand behind its name."""
        parts = []
        if self.canary is not None:
            parts.append(f"gets {100 * self.canary:.4g}% of the requests to {name}")
        if self.shadow is not None:
            parts.append(f"gets copies of {100 * self.shadow:.4g}% of the requests to {name}")
        return " and ".join(parts)


def parse_rules(texts: Sequence[str]) -> dict[str, Any]:
    """The rules that ``--rule`` options name: ``max_error_rate=0.02``, or a gate on scores. Raises PublishError."""
    rules: dict[str, Any] = {}
    gates: list[str] = []
    for text in texts:
        match = _RULE.fullmatch(text.strip())
        if match is not None:
            number = float(match["number"])
            rules[match["name"]] = int(number) if match["name"] in _COUNTS else number
        elif any(sign in text for sign in "<>"):
            gates.append(text.strip())
        else:
            raise PublishError(
                f'--rule {text!r} is no rule; write one like max_error_rate=0.02, min_requests=100 or "f1>=live-0.01"'
            )
    return {**rules, "gates": gates} if gates else rules
