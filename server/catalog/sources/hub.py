"""A package of the hub: the files that may belong to one, of one commit, and no others."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from adapters.kinds.config import CONFIG_FILE
from adapters.package.files import flat_name, is_kept, package_files
from server.catalog.sources.errors import SourceError, stopped, too_large, unavailable

_HUB_ID = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}")
_SECONDS = 15.0


def hub_id(source: str) -> str | None:
    """The id that ``source`` may be, as ORG/NAME or hf://ORG/NAME."""
    return found[1] if (found := _HUB_ID.fullmatch(source)) and ".." not in source else None


def download(name: str, revision: str | None, into: Path, most: int, stop: threading.Event) -> Path:
    """The directory, ``into``, of the files of ``name`` at ``revision`` (None: its main branch).

    Given up, before the next file, once ``stop`` is set. Raises SourceError, or PackageError for files that would be
    left out and must not.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if revision is not None and not _REVISION.fullmatch(revision):
        raise SourceError("revision: must be a branch, tag or commit", param="revision", code="invalid_source")
    disable_progress_bars()
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        info = hub.model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
        for file in _kept(name, {file.rfilename: file.size or 0 for file in info.siblings or ()}, most):
            if stop.is_set():
                raise stopped()
            hub.hf_hub_download(name, file, revision=info.sha, local_dir=into, etag_timeout=_SECONDS)
    except errors.GatedRepoError as error:
        raise unavailable(f"{name} is gated; the operator of this server has to log in to the hub") from error
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise unavailable(f"the hub has no {name} at that revision, or it is private") from error
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]  # of httpx
        raise unavailable(f"the hub does not give {name}, or cannot be reached from here") from error
    for file, path in package_files(into).items():
        path.rename(into / file)
    for path in into.iterdir():
        if path.is_dir():  # the hub's client leaves notes, too
            shutil.rmtree(path)
    if sum(path.stat().st_size for path in into.iterdir()) > most:
        raise too_large(most)
    return into


def _kept(name: str, sizes: Mapping[str, int], most: int) -> list[str]:
    """The files of a repository that belong to the package at its top."""
    names = [file for file in sizes if "/" not in file]
    if CONFIG_FILE not in names:
        raise unavailable(f"{name} holds no {CONFIG_FILE} at its top: it is no adapter")
    kept = [file for file in names if is_kept(file, beside=names)]
    kept += [file for file in sizes if flat_name(file) is not None]
    if sum(sizes[file] for file in kept) > most:
        raise too_large(most)
    return kept
