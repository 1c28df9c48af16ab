"""What an adapter must know of its base model (names, shapes, fingerprint), and where base models are found."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import BaseModelError
from adapters.names import shown

if TYPE_CHECKING:  # the API process resolves bases without torch
    from torch import Tensor

DEFAULT_BASE = "smollm2-135m-instruct"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges.txt"]
_HUB_UNREAD = ["*/*", "consolidated*"]
_WINDOWS, _WINDOW = 64, 64 * 1024  # of a GGUF file that are hashed


def _no_weight(name: str) -> Tensor:
    raise AssertionError(f"this spec does not know the weight of {name}")


@dataclass(frozen=True, eq=False)
class BaseSpec:
    """The shapes of a base model that packages are checked against.

    Names are module paths inside the model (``model.layers.0.self_attn.q_proj``). ``linears`` maps each linear map,
    the output head ``head`` among them, to (out_features, in_features); ``biases`` maps every module that has a bias,
    linear or norm, to that bias; ``parameters`` maps each parameter of these modules, of norms and of the input
    embedding ``embedding`` to its shape before quantization, as a checkpoint stores it; ``transposed`` linear maps are
    stored [in_features, out_features]. ``experts`` maps each parameter of routed experts, in the order of its module,
    to (num_experts, in_features, out_features); ``routers`` maps each module that chooses experts to the shape of its
    weight, (num_experts, in_features). ``tied``: the head's weight is the embedding's. ``weight(module)`` is the weight
    [out_features, in_features] of a linear map, or that of ``embedding`` [vocab_size, hidden_size], as the base
    computes with it (dequantized), in float32 on the CPU. ``embed_scale`` is what the embedding module multiplies its
    rows by. ``head_dim`` is 0 where keys and values, or layers, differ in size. ``is_encoder_decoder``: ``num_layers``
    and the heads are the decoder's, and ``embedding`` is empty, as adapters cannot act on an embedding that two stacks
    share.
    """

    name: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    linears: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    experts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    routers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    embedding: str = ""
    embed_scale: float = 1.0
    head: str = ""
    tied: bool = False
    weight: Callable[[str], Tensor] = _no_weight
    chat_template_sha256: str | None = None
    is_encoder_decoder: bool = False


def cache_dir() -> Path:
    """Where hotswap keeps imported bases: ``$HOTSWAP_CACHE``, or ``~/.cache/hotswap``."""
    return Path(os.environ.get("HOTSWAP_CACHE") or Path.home() / ".cache" / "hotswap").expanduser()


def default_base_dir() -> Path:
    """Where the default base lies once it is imported."""
    return cache_dir() / "bases" / DEFAULT_BASE


def is_gguf(spec: str) -> bool:
    """Whether ``spec`` names a GGUF file rather than a directory or a hub id."""
    return spec.lower().endswith(".gguf") and not Path(spec).expanduser().is_dir()


def gguf_base_dir(gguf: Path) -> Path:
    """Where the base in the file ``gguf`` lies once it is imported: under a name of its content, wherever it is moved.

    Raises BaseModelError when the file cannot be read.
    """
    try:
        size = gguf.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with gguf.open("rb") as file:
            for i in range(_WINDOWS):
                file.seek(i * max(size - _WINDOW, 0) // (_WINDOWS - 1))
                digest.update(file.read(_WINDOW))
    except OSError as error:
        raise BaseModelError(f"{gguf} cannot be read: {error.strerror}") from error
    return cache_dir() / "bases" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', gguf.stem)}-{digest.hexdigest()[:12]}"


def resolve_base(spec: str) -> Path:
    """The directory of the base meant by ``spec``: a directory, an imported GGUF file, ``DEFAULT_BASE`` or a hub id.

    What is on the hub is downloaded once. Raises BaseModelError saying what to do.
    """
    directory = Path(spec).expanduser()
    if spec and directory.is_dir():
        return directory
    if is_gguf(spec):
        if ((imported := gguf_base_dir(directory)) / "config.json").is_file():
            return imported
        raise BaseModelError(f"{spec} is not imported yet; run: hotswap base import {spec}")
    if spec == DEFAULT_BASE:
        if (default_base_dir() / "config.json").is_file():
            return default_base_dir()
        raise BaseModelError(f"the default base {DEFAULT_BASE} is not imported yet; run: hotswap base import")
    if _HUB_ID.fullmatch(spec):
        return _download(spec)
    raise BaseModelError(
        f"there is no base model {shown(spec)}: give a directory, GGUF file, hub id (org/name) or {DEFAULT_BASE}"
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_UNREAD))
    except GatedRepoError as error:
        raise BaseModelError(f"the base model {hub_id} is gated: accept its terms, then run: hf auth login") from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(f"the hub has no model {hub_id}, or it is private and you are not logged in") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BaseModelError(
            f"the base model {hub_id} is neither a directory nor in the local hub cache, and cannot be downloaded "
            "(is the hub reachable?)"
        ) from error
