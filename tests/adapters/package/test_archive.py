"""Archives: what is unpacked, and every way in which one can be bad."""

from __future__ import annotations

import gzip
import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.archive import pack, unpack
from adapters.package.reading import read_package
from tests.adapters.package.junk import JUNK
from tests.adapters.support import LORA_CONFIG, lora_tensors, refusal, write_raw

FORMATS = ["tar", "tar.gz", "zip", "tar.bsd", "tar.gnu"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_raw(tmp_path / "package", LORA_CONFIG, lora_tensors())


def make(path: Path, kind: str, files: dict[str, bytes]) -> Path:
    """Write ``files`` (a name ending in / is a folder) as an archive of ``kind``."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in files.items():
                opened.writestr(name, data)
        return path
    form = {"tar.bsd": tarfile.PAX_FORMAT, "tar.gnu": tarfile.GNU_FORMAT}.get(kind, tarfile.USTAR_FORMAT)
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size, info.type = len(data), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            if kind == "tar.bsd":
                info.pax_headers = {"SCHILY.xattr.com.apple": "x", "mtime": "1.5", "path": name.rstrip("/")}
            tar.addfile(info, io.BytesIO(data))
    return path


def files_of(package: Path, prefix: str = "") -> dict[str, bytes]:
    return {prefix + path.name: path.read_bytes() for path in package.iterdir()}


def link(path: Path, kind: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("adapter_config.json")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("prefix", ["", "./", "my-adapter/", "./my-adapter/", "long" * 40 + "/"])
def test_unpacks_what_is_ours_and_nothing_else(package: Path, tmp_path: Path, kind: str, prefix: str) -> None:
    if kind in ("tar", "tar.gz") and len(prefix) > 100:
        pytest.skip("ustar has no names that long")
    extras = {
        f"{prefix}{name}": b"x" for name in ("README.md", "tokenizer.json", "training_args.bin", "chat_template.jinja")
    }
    nested = {f"{prefix}checkpoint-5/more/{name}": b"x" for name in ("pytorch_model.bin", "adapter_config.json")}
    folder = {prefix: b""} if prefix not in ("", "./") else {}
    files = {**folder, **extras, **nested, **files_of(package, prefix), "__MACOSX/._x": b""}
    found = unpack(make(tmp_path / "upload", kind, files), tmp_path / "into")
    kept = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"]
    assert sorted(path.name for path in found.iterdir()) == kept
    assert read_package(found).digest == read_package(package).digest


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "tar.bsd"])
@pytest.mark.parametrize("prefix", ["", "mine/"])
def test_what_systems_and_training_leave_is_ignored(package: Path, tmp_path: Path, kind: str, prefix: str) -> None:
    beside = {f"{prefix}{name}": b"\0\5\x16\7" for name in JUNK}
    folders = ("global_step10", "checkpoint-3", "pytorch_model_fsdp_0", ".cache/huggingface", "runs/a")
    deeper = {
        f"{prefix}{folder}/{name}": b"x" for folder in folders for name in ("mp_rank_00_model_states.pt", "x.bin")
    }
    macs = {"__MACOSX/._mine": b"", "__MACOSX/adapter_config.json": b"", "._mine": b"", ".git/adapter_config.json": b""}
    files = {**macs, **beside, **deeper, **files_of(package, prefix)}
    found = unpack(make(tmp_path / "upload", kind, files), tmp_path / "into")
    assert read_package(found).digest == read_package(package).digest


def test_an_entry_without_a_name_is_refused(package: Path, tmp_path: Path) -> None:
    as_zip = make(tmp_path / "a", "zip", {**files_of(package), "unnamed": b"x"}).read_bytes()
    as_zip = as_zip.replace(b"unnamed", b"\0nnamed")
    as_tar = tarfile.TarInfo("").tobuf() + make(tmp_path / "b", "tar", files_of(package)).read_bytes()
    for data in (as_zip, as_tar, gzip.compress(as_tar)):
        (tmp_path / "upload").write_bytes(data)
        with pytest.raises(PackageError, match="an entry without a name"):
            unpack(tmp_path / "upload", tmp_path / "into")


def test_gzip_members_are_counted(package: Path, tmp_path: Path) -> None:
    data, nothing = make(tmp_path / "plain", "tar", files_of(package)).read_bytes(), gzip.compress(b"")
    parts = [gzip.compress(data[i : i + 700]) for i in range(0, len(data), 700)]
    (tmp_path / "few").write_bytes(b"".join(part + nothing + bytes(3) for part in parts) + bytes(200_000))
    assert read_package(unpack(tmp_path / "few", tmp_path / "into")).digest == read_package(package).digest
    (tmp_path / "many").write_bytes(parts[0] + nothing * 100_000 + b"".join(parts[1:]))
    with pytest.raises(PackageError, match=r"its gzip stream has more than \d+ members"):
        unpack(tmp_path / "many", tmp_path / "into")


def test_a_zip_may_not_list_more_files_than_it_says(package: Path, tmp_path: Path) -> None:
    upload = make(tmp_path / "upload", "zip", {**files_of(package), **{f"{i}": b"" for i in range(2000)}})
    data = bytearray(upload.read_bytes())
    data[-14:-10] = (2).to_bytes(2, "little") * 2
    upload.write_bytes(data)
    with pytest.raises(PackageError, match="more than 1024 files"):
        unpack(upload, tmp_path / "into")


def test_extended_headers_are_counted_over_the_whole_archive(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 65_000
    one = info.tobuf(tarfile.USTAR_FORMAT) + b"5 a=\n" * 13_000 + bytes(-65_000 % 512)
    (tmp_path / "upload").write_bytes((one + tarfile.TarInfo("f").tobuf()) * 20 + bytes(1024))
    with pytest.raises(PackageError, match="over 1048576 bytes of extended headers"):
        unpack(tmp_path / "upload", tmp_path / "into")


def test_pack_round_trip_is_deterministic(package: Path, tmp_path: Path) -> None:
    (package / "README.md").write_text("not packed")
    pack(package, tmp_path / "one.tar")
    for path in package.iterdir():
        path.touch()
    pack(package, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    found = unpack(tmp_path / "one.tar", tmp_path / "into")
    assert read_package(found).digest == read_package(package).digest
    with pytest.raises(PackageError, match="not a package"):
        pack(tmp_path, tmp_path / "three.tar")


@pytest.mark.parametrize("prefix", ["", "team/json/"])
def test_files_of_modules_are_beside_the_others_in_a_package(package: Path, tmp_path: Path, prefix: str) -> None:
    modules = {"1_Pooling/config.json": b"{}", "2_Dense/config.json": b"{ }", "2_Dense/model.safetensors": b"x"}
    others = {"2_Dense/pytorch_model.bin": b"", "2_Dense/x/config.json": b"", "Dense/config.json": b""}
    files = files_of(package) | modules | others
    archive = make(tmp_path / "a", "tar", {prefix + name: data for name, data in files.items()})
    found = unpack(archive, tmp_path / "into")
    assert files_of(found) == files_of(package) | {name.replace("/", "."): data for name, data in modules.items()}
    pack(found, tmp_path / "b")
    with tarfile.open(tmp_path / "b") as tar:  # for others to read, as it came
        assert set(modules) < set(tar.getnames())
    assert files_of(unpack(tmp_path / "b", tmp_path / "into")) == files_of(found)


NOT_ARCHIVES = {
    "empty": b"",
    "text": b"hello, this is no archive" * 50,
    "json": json.dumps(LORA_CONFIG).encode(),
    "gzip of text": gzip.compress(b"hello" * 1000, mtime=0),
    "pickle": b"\x80\x04\x95" + b"\0" * 600,
}


@pytest.mark.parametrize("name", list(NOT_ARCHIVES))
def test_not_an_archive(name: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(NOT_ARCHIVES[name])
    with pytest.raises(PackageError, match="not an archive"):
        unpack(tmp_path / "upload", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/..", "..\\x", "C:/x", "\\x"])
def test_path_escape(kind: str, name: str, package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="points outside of the package"):
        unpack(make(tmp_path / "upload", kind, {**files_of(package), name: b"x"}), tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_tar(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is a link, device or other special file"):
        unpack(link(tmp_path / "upload", kind), tmp_path / "into")


def test_links_in_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("adapter_config.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "upload", "w") as opened:
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(PackageError, match="is a link"):
        unpack(tmp_path / "upload", tmp_path / "into")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "filler.txt"])
def test_bomb(kind: str, name: str, tmp_path: Path) -> None:
    limits = PackageLimits(max_bytes=1 << 24, free_expansion_bytes=1 << 20)
    upload = make(tmp_path / "upload", kind, {name: bytes(1 << 23), "adapter_config.json": b"{}"})
    if (kind, name) == ("zip", "filler.txt"):  # never unpacked, so it costs nothing
        assert unpack(upload, tmp_path / "into", limits)
        return
    with pytest.raises(PackageError, match="suspicious: it unpacks to more than 100 times its size"):
        unpack(upload, tmp_path / "into", limits)
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_too_large_and_too_many(kind: str, package: Path, tmp_path: Path) -> None:
    upload = make(tmp_path / "upload", kind, {**files_of(package), **{f"{i}.txt": b"x" for i in range(20)}})
    with pytest.raises(PackageError, match="more than 5 files"):
        unpack(upload, tmp_path / "into", PackageLimits(max_files=5))
    with pytest.raises(PackageError, match="too large: it unpacks to more than 1000 bytes"):
        unpack(upload, tmp_path / "into", PackageLimits(max_bytes=1000))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "pytorch_model.bin", "x.pt", "x.pth", "model.pkl", "x.CKPT", "non_lora_trainables.bin"],
)
def test_pickle_weights(kind: str, name: str, package: Path, tmp_path: Path) -> None:
    files = files_of(package)
    del files["adapter_model.safetensors"]
    with pytest.raises(PackageError, match=r"is a pickle file.*convert the weights to adapter_model\.safetensors"):
        unpack(make(tmp_path / "upload", kind, {**files, name: b"x"}), tmp_path / "into")


def test_other_weights_are_not_left_out_silently(package: Path, tmp_path: Path) -> None:
    upload = make(tmp_path / "upload", "tar", {**files_of(package), "new_embeddings.safetensors": b"x"})
    with pytest.raises(PackageError, match="not part of an adapter package"):
        unpack(upload, tmp_path / "into")


def test_which_folder_holds_the_package(package: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    with pytest.raises(PackageError, match=r"holds 2 packages \('a', 'b'\)"):
        unpack(make(tmp_path / "1", "tar", {**files_of(package, "a/"), **files_of(package, "b/")}), into)
    with pytest.raises(PackageError, match=r"holds no adapter_config\.json at its top"):
        unpack(make(tmp_path / "2", "tar", {"README.md": b""}), into)
    checkpoints = {f"out/checkpoint-{i}/{name}": data for i in (1, 2) for name, data in files_of(package).items()}
    with pytest.raises(PackageError, match=r"holds 2 packages \('out/checkpoint-1', 'out/checkpoint-2'\)"):
        unpack(make(tmp_path / "3", "tar", checkpoints), into)
    with pytest.raises(PackageError, match=r"adapter_model\.bin' is a pickle"):
        unpack(make(tmp_path / "4", "tar", {"a/adapter_model.bin": b""}), into)
    for outer, inner in (("", "a/"), ("content/out/", "content/out/checkpoint-5/"), ("a/b/", "a/b/c/d/")):
        other = dict.fromkeys((f"{inner}adapter_config.json", f"{inner}optimizer.pt", f"{inner}other.pt"), b"{}")
        for kind in ("tar", "zip"):
            upload = make(tmp_path / "upload", kind, {**other, **files_of(package, outer)})
            assert read_package(unpack(upload, into)).digest == read_package(package).digest


def test_all_of_a_gzip_stream_is_checked(package: Path, tmp_path: Path) -> None:
    upload = make(tmp_path / "upload", "tar.gz", files_of(package))
    data = upload.read_bytes()
    for damaged in (data[:-8] + bytes([data[-8] ^ 1]) + data[-7:], data[:-4], data + b"x"):  # its checksum comes last
        upload.write_bytes(damaged)
        with pytest.raises(PackageError, match="damaged or truncated"):
            unpack(upload, tmp_path / "into")
    upload.write_bytes(data + bytes(512))
    unpack(upload, tmp_path / "into")


def test_a_file_twice(package: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "upload", "w") as tar:
        for _ in range(2):
            tar.add(package / "adapter_config.json", "adapter_config.json")
    with pytest.raises(PackageError, match="twice"):
        unpack(tmp_path / "upload", tmp_path / "into")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_truncated(kind: str, keep: float, package: Path, tmp_path: Path) -> None:
    data = make(tmp_path / "whole", kind, files_of(package)).read_bytes()
    if kind.startswith("tar") and kind != "tar.gz":
        data = data.rstrip(b"\0")
    (tmp_path / "upload").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(PackageError, match=r"truncated|damaged|not an archive"):
        unpack(tmp_path / "upload", tmp_path / "into")


def test_huge_extended_headers_are_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "upload").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(PackageError, match="extended header of 1073741824 bytes"):
        unpack(tmp_path / "upload", tmp_path / "into")


@pytest.mark.parametrize("record", [b"9 x=1\n", b"0 path=a\n", b"99999 path=a\n", b"path=a\n", b"-1 a=b\n", b"\xff"])
def test_malformed_pax_headers(record: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    block = info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(512 - len(record))
    (tmp_path / "upload").write_bytes(block + tarfile.TarInfo("adapter_config.json").tobuf() + bytes(1024))
    with pytest.raises(PackageError, match=r"malformed|not UTF-8"):
        unpack(tmp_path / "upload", tmp_path / "into")


def test_a_chain_of_extended_headers_ends(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    (tmp_path / "upload").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 5000)
    with pytest.raises(PackageError, match="too many extended headers"):
        unpack(tmp_path / "upload", tmp_path / "into")


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "upload", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("adapter_config.json")
        info.pax_headers = {"GNU.sparse.major": "1"}
        tar.addfile(info)
    with pytest.raises(PackageError, match="sparse"):
        unpack(tmp_path / "upload", tmp_path / "into")


def test_zip_with_unusual_compression_or_zip64(package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bz2", "w", zipfile.ZIP_BZIP2) as opened:
        opened.writestr("adapter_config.json", "{}" * 100)
    with pytest.raises(PackageError, match="compression other than deflate"):
        unpack(tmp_path / "bz2", tmp_path / "into")
    data = make(tmp_path / "plain", "zip", files_of(package)).read_bytes()
    (tmp_path / "zip64").write_bytes(data[:-22] + b"PK\6\7" + bytes(16) + data[-22:])
    with pytest.raises(PackageError, match="zip64"):
        unpack(tmp_path / "zip64", tmp_path / "into")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(kind=st.sampled_from(FORMATS), data=st.data())
def test_damage_is_a_package_error_or_harmless(kind: str, package: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(make(tmp_path / "whole", kind, files_of(package, "a/")).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    (tmp_path / "upload").write_bytes(whole)
    assert refusal(lambda: read_package(unpack(tmp_path / "upload", tmp_path / "into"))).isprintable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08\0"]), data=st.binary(max_size=1200))
def test_noise_is_a_package_error(start: bytes, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "upload").write_bytes(start + data)
    with pytest.raises(PackageError):
        unpack(tmp_path / "upload", tmp_path / "into")
