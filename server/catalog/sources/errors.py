"""Why a package cannot be had from where it was said to be."""

from __future__ import annotations

from server.errors import InvalidRequestError


class SourceError(InvalidRequestError):
    """The reason, and a code: it is not there, not what was asked for, or not allowed."""

    def __init__(self, message: str, *, code: str = "source_unavailable", param: str = "source") -> None:
        super().__init__(message, param=param, code=code)


def unavailable(reason: str) -> SourceError:
    """It may be there, but cannot be had."""
    return SourceError(f"the source cannot be fetched: {reason}")


def stopped() -> SourceError:
    """The server ends meanwhile."""
    return unavailable("the server is shutting down")


def not_allowed(reason: str) -> SourceError:
    """The operator does not let packages come from there."""
    return SourceError(reason, code="source_not_allowed")


def not_found(reason: str) -> SourceError:
    """It is not there, or where nobody may look."""
    return SourceError(reason, code="source_not_found")


def too_large(most: int) -> SourceError:
    """More than ``most`` bytes."""
    return SourceError(f"the source is larger than {most} bytes (--max-upload-mb)", code="source_too_large")


def mismatch(found: str, digest: str | None) -> SourceError:
    """It is something else than was asked for."""
    return SourceError(f"what is there has the SHA-256 {found}, not {digest}", code="digest_mismatch", param="digest")
