"""What may be wrong with a base model."""

from __future__ import annotations


class BaseModelError(Exception):
    """A base model cannot be found, downloaded or read; the message says what to do."""


class BaseImportError(BaseModelError):
    """The default base cannot be downloaded or converted."""


class UntrustedCodeError(BaseModelError):
    """A base needs code of its own, which nobody has said to trust, or which is not there."""


class QuantizationError(BaseModelError):
    """A checkpoint was saved quantized in another way than asked, or in one that is not served."""
