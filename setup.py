"""Builds the native kernels: the same C++ sources once per variant of the processor, each a library of its own.

No headers but the compiler's are needed, and a variant that cannot be built is left out: ``hotkernels`` then takes the
next best, and torch where there is none (``hotkernels/native.py``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    "amx": [*AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-int8"],
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
VARIANTS: dict[str, list[str]] = X86 if IS_X86 else {"generic": []}


class BuildKernels(build_ext):
    """Compiles with the system's C++ compiler directly: what is built are plain libraries, not Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        """Python's version and ABI are none of the library's business."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        """Build all variants side by side."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [(ext, pool.submit(self._build, ext)) for ext in self.extensions]
        for ext, job in jobs:
            if (error := job.result()) is not None:
                self.warn(f"the native kernels' variant {ext.name} was not built: {error}")

    def _build(self, ext: Extension) -> str | None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        built = Path(self.get_ext_filename(ext.name))  # by build_ext --inplace, as `make install` begins with
        if built.is_file() and not newer_group([__file__, *ext.sources, *ext.depends], str(built)):
            if built.resolve() != target.resolve():
                shutil.copy2(built, target)
            return None
        staged = target.with_suffix(f".{os.getpid()}.tmp")  # a running server may have the old one mapped
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, *ext.extra_compile_args, *ext.sources, "-shared", "-o", str(staged)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"no C++ compiler ({error})"
        if done.returncode != 0:
            return done.stderr.strip()[-2000:]
        staged.replace(target)
        return None


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
