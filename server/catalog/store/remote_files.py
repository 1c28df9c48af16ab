"""Files anywhere that fsspec reaches, without waiting for ever. Knows no packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fsspec

from server.errors import EngineStartError

# Of S3, where an operator does not say otherwise: a store that is silent for so long is not there.
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 10, "retries": {"mode": "standard", "total_max_attempts": 1}}
_S3_TRIES = 2
PATIENCE = 15.0  # seconds for an answer; its libraries wait for some without end
SLOWEST = 256 * 1024  # bytes a second: less is as good as nothing


class RemoteFiles:
    """The file system of ``url``; ``root`` is the path in it. Raises EngineStartError with the reason, if there is one.

    ``options`` are fsspec's. Each kind of file system raises errors of its own: see ``faults.artifact_errors``.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        protocol = url.partition("://")[0]
        given = {**(options or {}), "use_listings_cache": False, "skip_instance_cache": True}
        if protocol in ("s3", "s3a"):
            given["config_kwargs"] = {**_S3_CONFIG, **given.get("config_kwargs", {})}
        if protocol in ("file", "local"):
            given.setdefault("auto_mkdir", True)
        try:
            self._fs, path = fsspec.core.url_to_fs(url, **given)
        except ImportError as error:
            need = "the extra: pip install 'hotswap[s3]'" if protocol in ("s3", "s3a") else f"a package: {error}"
            raise EngineStartError(f"{protocol}:// needs {need}") from error
        except (ValueError, TypeError) as error:
            raise EngineStartError(f"{url} is no address that fsspec knows, or an option is wrong") from error
        if hasattr(self._fs, "retries"):
            self._fs.retries = _S3_TRIES
        self.root: str = path.rstrip("/")

    def call(self, method: str, *args: Any, nbytes: int = 0, **options: Any) -> Any:
        """What fsspec's ``method`` returns, which moves ``nbytes``; what is far away is not waited for without end."""
        if self._fs.async_impl:
            options["timeout"] = PATIENCE + nbytes / SLOWEST
        return getattr(self._fs, method)(*args, **options)
