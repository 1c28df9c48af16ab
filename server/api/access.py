"""What a server asks of its callers: by the keys of its flags and files, and those of its catalog."""

from __future__ import annotations

from dataclasses import dataclass

from server.catalog.keys import KeyRing, Scope
from server.errors import OpenServerError
from server.settings import ServerConfig, open_to_others


@dataclass(frozen=True)
class Access:
    """Which part of the API asks for a key.

    A key of the catalog counts as one of a flag does, and goes on counting when it has expired or was revoked: the end
    of the last key must not open what it closed.
    """

    config: ServerConfig
    ring: KeyRing

    @property
    def has_keys(self) -> bool:
        """Whether there is a key of any kind."""
        return bool(self.config.api_keys or self.config.admin_keys or not self.ring.is_empty)

    @property
    def inference_is_open(self) -> bool:
        """Whether no key is asked for: there is none for inference.

        Where other machines connect and there is no key at all (the last one was deleted), nobody is let in.
        """
        for_inference = bool(self.config.api_keys) or self.ring.has(Scope.INFERENCE)
        return not for_inference and (self.config.is_loopback or self.has_keys)

    @property
    def admin_is_open(self) -> bool:
        """Whether the admin API needs no key: there is none of any kind, and only this machine can connect."""
        return self.config.admin_is_open and self.ring.is_empty

    @property
    def has_admin_keys(self) -> bool:
        """Whether some key opens the admin API."""
        return bool(self.config.admin_keys) or self.ring.has(Scope.ADMIN)

    def check(self) -> None:
        """Raise OpenServerError for a server that must not start so."""
        if not (self.config.is_loopback or self.has_keys):
            raise OpenServerError(open_to_others(self.config.host))
