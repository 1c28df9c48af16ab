"""Builds the native kernels: the same C++ sources for every variant of the processor, each a library of its own.

No headers but the compiler's are needed, and a variant that cannot be built is left out: ``hotkernels`` then takes the
next best, and torch where there is none (``hotkernels/native.py``).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

SOURCES = "hotkernels/csrc"
# No contraction: only where the sources say fma is a product rounded once with its sum.
COMMON = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-Wall",
    "-Wextra",
]
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86 = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "amx": [*AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
}
# Sources that do not ask for these are the same in every variant from AVX-512 on, and compiled once for all of them.
ASKED_FOR = {
    "-mavx512vnni": "__AVX512VNNI__",
    "-mamx-tile": "__AMX_",
    "-mamx-int8": "__AMX_INT8__",
    "-mamx-bf16": "__AMX_BF16__",
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
VARIANTS: dict[str, list[str]] = X86 if IS_X86 else {"generic": []}


class BuildKernels(build_ext):
    """Compiles with the system's C++ compiler directly: what is built are plain libraries, not Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        """Python's version and ABI are none of the library's business."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        """Compile side by side what the variants that are not up to date need, and link them."""
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects: dict[tuple[str, ...], Future[Path]] = {}
            for ext in self.extensions:
                if not self._is_built(ext):
                    for command in _compilations(ext):
                        if command not in objects:
                            objects[command] = pool.submit(_compile, command, Path(folder) / f"{len(objects)}.o")
            for ext in self.extensions:
                try:
                    self._finish(ext, objects)
                except (OSError, subprocess.CalledProcessError) as error:
                    failed = isinstance(error, subprocess.CalledProcessError)
                    reason = error.stderr.strip()[-2000:] if failed else f"no C++ compiler ({error})"
                    self.warn(f"the native kernels' variant {ext.name} was not built: {reason}")

    def _is_built(self, ext: Extension) -> bool:
        built = Path(self.get_ext_filename(ext.name))  # by build_ext --inplace, as `make install` begins with
        return built.is_file() and not newer_group([__file__, *ext.sources, *ext.depends], str(built))

    def _finish(self, ext: Extension, objects: dict[tuple[str, ...], Future[Path]]) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._is_built(ext):
            built = Path(self.get_ext_filename(ext.name))
            if built.resolve() != target.resolve():
                shutil.copy2(built, target)
            return
        staged = target.with_suffix(f".{os.getpid()}.tmp")  # a running server may have the old one mapped
        compiled = [str(objects[command].result()) for command in _compilations(ext)]
        _run([_compiler(), "-pthread", *compiled, "-shared", "-o", str(staged)])
        staged.replace(target)


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _compilations(ext: Extension) -> list[tuple[str, ...]]:
    """The compiler's flags and source for each object of a variant."""
    commands = []
    for source in ext.sources:
        text = _with_headers(Path(source))
        flags = [flag for flag in ext.extra_compile_args if ASKED_FOR.get(flag, "") in text]
        commands.append((*flags, source))
    return commands


def _with_headers(path: Path) -> str:
    text = path.read_text()
    return text + "".join(_with_headers(path.parent / name) for name in re.findall(r'^#include "(.+)"', text, re.M))


def _compile(command: tuple[str, ...], target: Path) -> Path:
    _run([_compiler(), *command, "-c", "-o", str(target)])
    return target


def _extension(name: str, flags: list[str]) -> Extension:
    headers = sorted(map(str, Path(SOURCES).glob("*.h")))
    sources = sorted(map(str, Path(SOURCES).glob("*.cpp")))
    return Extension(
        f"hotkernels.lib{name}", sources, depends=headers, extra_compile_args=[*COMMON, *flags], optional=True
    )


setup(
    ext_modules=[_extension(name, flags) for name, flags in VARIANTS.items()],
    cmdclass={"build_ext": BuildKernels},
)
