"""Errors of the command itself. The CLI prints their message as one plain line and exits 1."""

from __future__ import annotations


class HotswapError(Exception):
    """The command cannot go on; the message says why and what to do."""


class DemoError(HotswapError):
    """A step of the demo failed."""
