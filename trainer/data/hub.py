"""Data sets of the Hugging Face hub: ``hub:owner/name[@revision][#split]`` to files in the local cache.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are huggingface_hub's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trainer.config.data import HUB
from trainer.data.cards import CARD_FILE, files_of_data_set, files_of_folder, read_card
from trainer.errors import DataError, first_line

_PATTERN = re.compile(r"(?P<name>[^@#]+/[^@#]+?)(@(?P<revision>[^#]+))?(#(?P<split>.+))?")


@dataclass(frozen=True)
class HubId:
    """A data set on the hub. None stands for its main branch and for what the configuration says."""

    name: str
    revision: str | None = None
    split: str | None = None


def parse_hub_id(path: str) -> HubId:
    """The parts of ``hub:owner/name[@revision][#split]``. Raises DataError."""
    found = _PATTERN.fullmatch(path.removeprefix(HUB))
    if not found:
        raise DataError(f"{path} is no data set of the hub; write hub:owner/name, hub:owner/name@revision#split")
    return HubId(found["name"], found["revision"], found["split"])


def hub_files(hub_id: HubId, split: str | None) -> list[Path]:
    """The files of ``split`` of ``hub_id``, downloaded where the cache lacks them. Raises DataError in one line."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx, whichever it uses

    name, revision = hub_id.name, hub_id.revision
    of = f"the data set {name} on the hub"
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
            return files_of_folder(folder, split, f"the cached copy of {name}")

        def download(file: str) -> Path:
            return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))

        listed = HfApi().list_repo_files(name, revision=revision, repo_type="dataset")
        card = read_card(download(CARD_FILE)) if CARD_FILE in listed else ""
        return [download(file) for file in files_of_data_set(listed, card, split, of)]
    except (OSError, HTTPError, ValueError) as error:
        raise DataError(_in_words(hub_id, error)) from error


def _in_words(hub_id: HubId, error: Exception) -> str:
    from huggingface_hub import constants, errors

    name = hub_id.name
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the data set {name} is gated: ask for access at {constants.ENDPOINT}/datasets/{name}, then set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is neither a local path {name} nor a data set of that name at {constants.ENDPOINT}; "
            "if it is private set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the data set {name} has no revision {hub_id.revision}"
    if isinstance(error, errors.HFValidationError):
        return f"{HUB}{name} is no name that the hub could have; write hub:owner/name"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return f"the data set {name} is not in the local cache and HF_HUB_OFFLINE is set; download it once online"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no"
        return f"the hub at {constants.ENDPOINT} answered {status} for the data set {name}; try again later"
    return f"the data set {name} cannot be had from {constants.ENDPOINT}: {first_line(error)}"
