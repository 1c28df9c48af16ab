"""An uploaded adapter to a package directory in quarantine: one archive, or the package's files one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from adapters.archive import unpack
from adapters.files import PACKAGE_FILES, is_kept
from adapters.limits import PackageLimits
from server.api.errors import ApiError
from server.api.multipart import UploadedFile, read_form
from server.api.parts import Parts

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Upload:
    """A package directory in quarantine, not yet looked at, and the form's other fields."""

    package: Path
    fields: dict[str, str]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A yes or no among the fields. Raises ApiError for anything else: it decides what is served."""
        text = self.fields.get(name, "").strip().lower()
        if text and text not in _YES + _NO:
            raise ApiError(400, f"{name}: must be true or false, not {text[:40]!r}", param=name)
        return text in _YES if text else default


@asynccontextmanager
async def receive(request: Request, parts: Parts) -> AsyncIterator[Upload]:
    """Stream the body into quarantine; nothing of it is left there afterwards. Raises ApiError or PackageError."""
    store = parts.lifecycle.store
    place = await asyncio.to_thread(store.new_quarantine)
    try:
        form = await read_form(request, place)
        package = await asyncio.to_thread(_package, form.files, place, parts.config.max_upload_mb)
        yield Upload(package, form.fields)
    finally:
        await asyncio.to_thread(store.discard, place)


def _package(files: list[UploadedFile], place: Path, max_megabytes: float) -> Path:
    """The directory of the package among ``files``."""
    if not files:
        raise ApiError(400, "the form holds no file; attach the adapter's archive or its files", param="file")
    if not any(file.name in PACKAGE_FILES for file in files):
        if len(files) > 1:
            raise ApiError(400, "several files, and none is part of a package; attach one archive", param="file")
        limit = int(max_megabytes * 2**20)
        return unpack(files[0].path, place / "unpacked", PackageLimits(max_bytes=max(2 * limit, 1)))
    folder = place / "package"
    folder.mkdir()
    for file in files:
        if not is_kept(file.name):
            continue
        if (folder / file.name).exists():
            raise ApiError(400, f"the form holds {file.name} twice", param="file")
        file.path.rename(folder / file.name)
    return folder
