from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from peft import LoraConfig
from safetensors.numpy import load_file, save

from tests.adapters.package.junk import JUNK
from tests.factory import make_adapter, make_base
from tests.server.api.support import BASE, STEADY, answer, archive, error_of, wanted
from tests.server.live import Live, live_server, slow_steps

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def admin(server: Live) -> Iterator[httpx.Client]:
    """A client; adapters it leaves behind are removed afterwards, and nothing may stay in quarantine."""
    with server.http() as http:
        before = set(server.context.registry.known_names())
        yield http
        for name in set(server.context.registry.known_names()) - before:
            http.delete(f"/v1/adapters/{name}", params={"mode": "force"})
        quarantine = server.context.lifecycle.store._quarantine.folder
        server.wait(lambda: not list(quarantine.iterdir()), "an empty quarantine")


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def files_of(package: Path) -> dict[str, bytes]:
    return {name: (package / name).read_bytes() for name in (CONFIG, WEIGHTS)}


# ---- coming ----


@pytest.mark.parametrize("form", ["tar", "tgz", "zip", "folder", "files"])
def test_upload_in_every_form(
    server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], *, tmp_path: Path, form: str
) -> None:
    package = packages["lora-2"]
    contents = files_of(package)
    match form:
        case "tar":
            files: Any = {"file": ("x.tar", archive(package, tmp_path))}
        case "tgz":
            import gzip

            files = {"file": ("../../etc/x", gzip.compress(archive(package, tmp_path)))}
        case "zip":
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
                for name, data in contents.items():
                    made.writestr(f"folder/{name}", data)
            files = {"file": ("x.zip", out.getvalue())}
        case "folder":
            files = {"file": ("x.tar", tar({f"some/{name}": data for name, data in contents.items()}))}
        case _:
            files = [("file", (f"dir/{name}", data)) for name, data in contents.items()]
            files.append(("file", ("README.md", b"# hello")))
    response = admin.post("/v1/adapters", files=files, data={"name": f"new-{form}"})
    assert response.status_code == 201, response.text
    body = response.json()
    assert body["name"] == f"new-{form}"
    assert body["id"] == f"new-{form}@1"
    assert body["kind"] == "lora"
    assert body["bytes"] > 0
    assert len(body["digest"]) == 64
    assert body["base_fingerprint"] == server.context.engine.info.base_fingerprint
    assert body["warnings"] == []
    assert answer(server, f"new-{form}") == wanted(base, package)


def test_the_name_may_come_in_the_query(admin: httpx.Client, packages: dict[str, Path]) -> None:
    files = [("f", (name, data)) for name, data in files_of(packages["lora-2"]).items()]
    assert admin.post("/v1/adapters", params={"name": "queried"}, files=files).json()["name"] == "queried"


def test_replace_makes_a_version_and_leaves_running_requests_alone(
    server: Live, admin: httpx.Client, client: openai.OpenAI, base: Path, *, packages: dict[str, Path], tmp_path: Path
) -> None:
    old, new = (archive(packages[name], tmp_path) for name in ("lora", "lora-2"))
    assert admin.put("/v1/adapters/swapped", files={"file": old}).status_code == 201
    options: dict[str, Any] = {"prompt": "x", "max_tokens": 400, "temperature": 0, "extra_body": STEADY}
    with slow_steps():
        stream = client.completions.create(model="swapped", stream=True, **options)
        pieces = [next(iter(stream)).choices[0].text]
        response = admin.put("/v1/adapters/swapped", files={"file": new})
        assert response.status_code == 201
        assert response.json()["version"] == 2
        assert answer(server, "swapped") == wanted(base, packages["lora-2"])
        states = {v["version"]: v["state"] for v in admin.get("/v1/adapters/swapped").json()["versions"]}
        assert states == {1: "draining", 2: "live"}
    pieces += [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == client.completions.create(model="lora", **options).choices[0].text
    server.wait(
        lambda: admin.get("/v1/adapters/swapped").json()["versions"][0]["state"] == "stored", "version 1 to drain"
    )


def test_post_of_an_existing_name(admin: httpx.Client, packages: dict[str, Path], tmp_path: Path) -> None:
    first, second = (archive(packages[name], tmp_path) for name in ("lora", "lora-2"))
    assert admin.post("/v1/adapters?name=taken", files={"file": first}).status_code == 201
    conflict = admin.post("/v1/adapters?name=taken", files={"file": second})
    error = error_of(conflict, 409)
    assert error["code"] == "adapter_exists"
    assert "PUT /v1/adapters/taken" in error["message"]
    assert conflict.headers["x-should-retry"] == "false"
    repeated = admin.post("/v1/adapters?name=taken", files={"file": first})
    assert (repeated.status_code, repeated.json()["version"]) == (200, 1)
    replaced = admin.post("/v1/adapters?name=taken&replace=true", files={"file": second})
    assert (replaced.status_code, replaced.json()["version"]) == (201, 2)
    unchanged = admin.put("/v1/adapters/taken", files={"file": second})
    assert (unchanged.status_code, unchanged.json()["version"]) == (200, 2)


def test_many_at_once(server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    data = archive(packages["lora-2"], tmp_path)
    with ThreadPoolExecutor(4) as pool:
        statuses = list(
            pool.map(lambda i: admin.put(f"/v1/adapters/many-{i}", files={"f": data}).status_code, range(8))
        )
        same = list(pool.map(lambda _: admin.put("/v1/adapters/one", files={"f": data}), range(8)))
        answers = set(pool.map(lambda i: answer(server, f"many-{i}"), range(8)))
    assert statuses == [201] * 8
    assert {response.json()["version"] for response in same} == {1}
    assert {response.status_code for response in same} <= {200, 201}
    assert answers == {wanted(base, packages["lora-2"])}


# ---- inspecting ----


def test_list_and_inspect(server: Live, admin: httpx.Client) -> None:
    listed = admin.get("/v1/adapters").json()
    assert listed["object"] == "list"
    assert [entry["name"] for entry in listed["data"]] == ["lora", "prefix", "prompt"]
    prefix = admin.get("/v1/adapters/prefix").json()
    assert (prefix["kind"], prefix["num_virtual_tokens"], prefix["version"], prefix["running"]) == ("prefix", 5, 1, 0)
    assert prefix["versions"][0]["state"] == "live"
    assert prefix["manifest"] is None
    version = admin.get("/v1/adapters/prefix/versions/1").json()
    assert version == {**prefix["versions"][0], "manifest": None}
    assert error_of(admin.get("/v1/adapters/prefix/versions/9"), 404)["code"] == "model_not_found"
    assert error_of(admin.get("/v1/adapters/prefix/versions/one"))["param"] == "version"
    error_of(admin.get("/v1/adapters/nobody"), 404)


def test_running_is_counted(server: Live, admin: httpx.Client, client: openai.OpenAI) -> None:
    with slow_steps():
        stream = client.completions.create(
            model="lora", prompt="x", n=3, max_tokens=1900, stream=True, extra_body=STEADY
        )
        assert admin.get("/v1/adapters/lora").json()["running"] == 3
        stream.close()
    server.wait_idle()
    assert admin.get("/v1/adapters/lora").json()["running"] == 0


# ---- going ----


def test_drain_lets_requests_finish(
    server: Live, admin: httpx.Client, client: openai.OpenAI, packages: dict[str, Path], tmp_path: Path
) -> None:
    admin.put("/v1/adapters/leaving", files={"file": archive(packages["lora"], tmp_path)})
    options: dict[str, Any] = {"prompt": "y", "max_tokens": 300, "temperature": 0, "extra_body": STEADY}
    with slow_steps():
        stream = client.completions.create(model="leaving", stream=True, **options)
        pieces = [next(iter(stream)).choices[0].text]
        assert admin.delete("/v1/adapters/leaving").json() == {
            "object": "adapter.deleted", "name": "leaving", "deleted": True, "mode": "drain",
        }  # fmt: skip
        error = error_of(server.post("/v1/completions", {"model": "leaving", "prompt": "x"}), 404)
        assert "run still" in error["message"]
    pieces += [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == client.completions.create(model="lora", **options).choices[0].text
    server.wait(lambda: server.stats.adapters_resident <= 3, "the adapter's memory to be freed")
    error_of(admin.delete("/v1/adapters/leaving"), 404)


def test_force_ends_requests(server: Live, admin: httpx.Client, packages: dict[str, Path], tmp_path: Path) -> None:
    admin.put("/v1/adapters/shot", files={"file": archive(packages["lora"], tmp_path)})
    body = {"model": "shot", "prompt": "x", "max_tokens": 1900, **STEADY}
    with slow_steps(), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.post, "/v1/completions", body)
        server.wait(lambda: server.stats.num_running == 1, "the request to run")
        assert admin.delete("/v1/adapters/shot?mode=force").status_code == 200
        error = error_of(waiting.result(30), 404)
    assert "shot@1 was removed" in error["message"]
    server.wait_idle()


def test_a_removed_name_can_come_back(
    server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    for package in ("lora", "lora-2"):
        response = admin.post("/v1/adapters?name=again", files={"f": archive(packages[package], tmp_path)})
        assert response.status_code == 201
        assert answer(server, "again") == wanted(base, packages[package])
        admin.delete("/v1/adapters/again")


def test_a_wrong_mode(admin: httpx.Client) -> None:
    assert error_of(admin.delete("/v1/adapters/lora?mode=gently"))["param"] == "mode"


# ---- bad packages ----


def bad_packages(package: Path, tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Archives that must be refused, and a word of the refusal."""
    good = files_of(package)
    tensors = load_file(package / WEIGHTS)
    first = next(iter(tensors))

    def with_tensors(changed: dict[str, Any]) -> bytes:
        return tar(good | {WEIGHTS: save(changed)})

    def with_config(**changed: Any) -> bytes:
        return tar(good | {CONFIG: json.dumps(json.loads(good[CONFIG]) | changed).encode()})

    nan = tensors[first].copy()
    nan.flat[0] = np.nan
    other = make_base(tmp_path / "other", hidden_size=32, head_dim=8)
    foreign = make_adapter(
        other, tmp_path / "foreign", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as made:
        info = tarfile.TarInfo(WEIGHTS)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(info)
    unnamed = io.BytesIO()
    with zipfile.ZipFile(unnamed, "w") as zipped:
        for name, data in {**good, "unnamed": b"x"}.items():
            zipped.writestr(name, data)
    tokens = [{"id": 300 + i, "content": f"{i:01000}"} for i in range(300)]
    return {
        "not-an-archive": (b"hello, I am no archive" * 100, "not an archive"),
        "empty": (b"", "not an archive"),
        "path-escape": (tar({"../../evil": b"x", **good}), "outside"),
        "absolute": (tar({"/etc/evil": b"x", **good}), "outside"),
        "link": (link.getvalue(), "link"),
        "pickle": (tar({CONFIG: good[CONFIG], "adapter_model.bin": pickle.dumps({})}), "pickle"),
        "no-config": (tar({WEIGHTS: good[WEIGHTS]}), CONFIG),
        "no-weights": (tar({CONFIG: good[CONFIG]}), WEIGHTS),
        "truncated-archive": (tar(good)[: len(tar(good)) // 2], "truncated"),
        "truncated-weights": (tar(good | {WEIGHTS: good[WEIGHTS][:-100]}), ""),
        "config-not-json": (tar(good | {CONFIG: b"{"}), CONFIG),
        "unknown-kind": (with_config(peft_type="POLY"), "POLY"),
        "wrong-base": (files_as_tar(foreign), ""),
        "wrong-shape": (with_tensors(tensors | {first: np.zeros((4, 3), np.float32)}), ""),
        "unknown-tensor": (with_tensors(tensors | {"base_model.model.surprise": np.zeros(3, np.float32)}), "surprise"),
        "missing-tensor": (with_tensors({k: v for k, v in tensors.items() if k != first}), ""),
        "nan": (with_tensors(tensors | {first: nan}), "NaN"),
        "unnamed-entry": (unnamed.getvalue().replace(b"unnamed", b"\0nnamed"), "an entry without a name"),
        "gzip-of-nothing": (gzip.compress(b"") * 5000 + gzip.compress(tar(good)), "members"),
        "recursive-pattern": (with_config(rank_pattern={"(?:a|(?R))*": 4}), "not a regular expression"),
        "long-tokens": (tar(good | {"tokenizer.json": json.dumps({"added_tokens": tokens}).encode()}), "characters"),
        "other-tokens": (
            tar(
                good
                | {
                    "added_tokens.json": b'{"<a>": 300}',
                    "tokenizer.json": json.dumps({"added_tokens": [{"id": 300, "content": "<b>"}]}).encode(),
                }
            ),
            "token 300 is '<b>' in tokenizer.json and '<a>' in added_tokens.json",
        ),
    }


def test_files_beside_junk_one_by_one(admin: httpx.Client, packages: dict[str, Path]) -> None:
    files = [("file", (name, data)) for name, data in files_of(packages["lora"]).items()]
    junk = [("file", (name, b"\0\5\x16\7")) for name in JUNK]
    answer = admin.post("/v1/adapters", files=[*junk, *files], data={"name": "beside"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == admin.get("/v1/adapters/lora").json()["digest"]
    assert admin.delete("/v1/adapters/beside").status_code == 200
    alone = [*junk, ("file", ("adapter_config.json", files_of(packages["lora"])[CONFIG]))]
    error = error_of(admin.post("/v1/adapters", files=alone, data={"name": "beside"}))
    assert "convert the weights" in error["message"]


def files_as_tar(package: Path) -> bytes:
    return tar(files_of(package))


def test_every_bad_package_is_refused_clearly_and_nothing_changes(
    server: Live, admin: httpx.Client, base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    before = (server.context.registry.names(), server.stats.adapters_resident)
    for case, (data, word) in bad_packages(packages["lora"], tmp_path).items():
        error = error_of(admin.post("/v1/adapters", files={"file": data}, data={"name": "bad"}))
        assert word.lower() in error["message"].lower(), (case, error)
        assert error["code"] in ("invalid_adapter_package", "unsupported_adapter_kind", "base_mismatch"), case
        assert str(tmp_path) not in error["message"]
        # a bad replacement leaves what is served in service
        error_of(admin.put("/v1/adapters/lora", files={"file": data}))
    assert (server.context.registry.names(), server.stats.adapters_resident) == before
    assert answer(server, "lora") == wanted(base, packages["lora"])
    assert admin.get("/v1/adapters/lora").json()["version"] == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "x" * 129, "ü", "a b", BASE, "a@1", "a:b"])
def test_bad_names(admin: httpx.Client, packages: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = archive(packages["lora"], tmp_path)
    error_of(admin.post("/v1/adapters", params={"name": name}, files={"file": data}))
    error_of(admin.post("/v1/adapters", data={"name": name}, files={"file": data}))


def test_bad_forms(admin: httpx.Client, packages: dict[str, Path], tmp_path: Path) -> None:
    data = archive(packages["lora"], tmp_path)
    good = files_of(packages["lora"])
    assert error_of(admin.post("/v1/adapters", files={"file": data}))["param"] == "name"
    assert error_of(admin.post("/v1/adapters?name=x", json={"source": "/etc"}))["code"] == "source_not_allowed"
    assert error_of(admin.post("/v1/adapters?name=x", content=data), 415)["code"] == "unsupported_media_type"
    assert error_of(admin.post("/v1/adapters", files={"name": (None, "x")}))["param"] == "file"
    two = [("f", ("a.tar", data)), ("f", ("b.tar", data))]
    assert error_of(admin.post("/v1/adapters?name=x", files=two))["param"] == "file"
    twice = [("f", (CONFIG, good[CONFIG])), ("f", (CONFIG, good[CONFIG]))]
    assert "twice" in error_of(admin.post("/v1/adapters?name=x", files=twice))["message"]
    weights = [("f", (CONFIG, good[CONFIG])), ("f", ("extra.safetensors", good[WEIGHTS]))]
    assert "extra.safetensors" in error_of(admin.post("/v1/adapters?name=x", files=weights))["message"]


def test_an_archive_whose_name_is_not_ascii(admin: httpx.Client, packages: dict[str, Path], tmp_path: Path) -> None:
    """As older clients send it, with no plain ``filename`` beside."""
    disposition = b"Content-Disposition: form-data; name=\"file\"; filename*=utf-8''%D0%B0.tar\r\n\r\n"
    body = b"--b\r\n" + disposition + archive(packages["lora-2"], tmp_path) + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert admin.put("/v1/adapters/not-ascii", content=body, headers=headers).status_code == 201
    assert admin.delete("/v1/adapters/not-ascii").status_code == 200


def test_malformed_multipart(admin: httpx.Client) -> None:
    def post(content: bytes, boundary: str = "b") -> dict[str, Any]:
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return error_of(admin.post("/v1/adapters?name=x", content=content, headers=headers))

    assert post(b"")["code"] == "upload_incomplete"
    assert post(b"garbage")["code"] == "invalid_multipart"
    assert (
        post(b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nabc')["code"] == "upload_incomplete"
    )
    many = (
        b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n' % i for i in range(65)) + b"--b--\r\n"
    )
    assert post(many)["code"] == "invalid_multipart"
    long = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n"
    assert post(long)["code"] == "invalid_multipart"


def test_too_large_an_upload(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    with live_server(base, tmp_path / "data", max_upload_mb=0.25) as live, live.http() as http:
        files = {"file": b"x" * (1 << 20)}
        assert error_of(http.put("/v1/adapters/x", files=files), 413)["code"] == "body_too_large"

        def chunked() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'
            for _ in range(64):
                yield b"x" * 65536

        headers = {"content-type": "multipart/form-data; boundary=b"}
        error_of(http.put("/v1/adapters/x", content=chunked(), headers=headers), 413)
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(WEIGHTS, b"\0" * (20 << 20))
        assert "too large" in error_of(http.put("/v1/adapters/x", files={"file": bomb.getvalue()}))["message"]
        assert not list(live.context.lifecycle.store._quarantine.folder.iterdir())
        assert http.put("/v1/adapters/x", files={"f": archive(packages["lora"], tmp_path)}).status_code == 201


# ---- audit ----


def test_changes_leave_audit_lines(
    admin: httpx.Client, packages: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    data = archive(packages["lora-2"], tmp_path)
    admin.put("/v1/adapters/audited", files={"f": data}, headers={"x-request-id": "my-id"})
    admin.put("/v1/adapters/audited", files={"f": b"junk"})
    admin.delete("/v1/adapters/audited")
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    assert [line["action"] for line in lines] == ["load", "refuse", "remove"]
    assert lines[0]["request_id"] == "my-id"
    assert lines[0]["version"] == 1
    assert lines[0]["client"] == "127.0.0.1"
    assert "archive" in lines[1]["reason"]
