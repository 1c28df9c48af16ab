"""Errors of adapter packages, drawn once.

AdapterError
├── PackageError          the files are not a sound adapter package
│   └── PackageChangedError   sound perhaps, but not those that were accepted
├── UnsupportedKindError  a sound package of a kind that is not served
└── BaseMismatchError     a sound package made for another base
"""

from __future__ import annotations

from typing import Self


class AdapterError(Exception):
    """A package cannot be used; the message says why and what to do, and is safe to show to a client."""

    code = "invalid_adapter"


class PackageError(AdapterError):
    """The files are malformed, unsafe, incomplete or inconsistent."""

    code = "invalid_adapter_package"

    @classmethod
    def unreadable(cls, name: str, error: OSError) -> Self:
        """The system does not give us the file ``name``."""
        return cls(f"{name} cannot be read: {error.strerror or 'unknown error'}")


class PackageChangedError(PackageError):
    """What is stored is not what was accepted under that digest."""

    code = "adapter_changed"


class UnsupportedKindError(AdapterError):
    """The package's ``peft_type``, or an option of it, is not served."""

    code = "unsupported_adapter_kind"


class BaseMismatchError(AdapterError):
    """The package was made for a base that differs from the one asked to carry it."""

    code = "base_mismatch"
