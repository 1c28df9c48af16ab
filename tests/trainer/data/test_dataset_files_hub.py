"""Data sets of a hub, over a real socket. Each look is a process of its own: HF_ENDPOINT is read at import."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.hub_server import TOKEN, hub
from trainer.data.dataset_files import HubId, parse_hub_id
from trainer.errors import DataError

LOOK = """
import sys
from trainer.config.data import DataConfig, complete_data
from trainer.data.sources import find_source
from trainer.errors import DataError
for path in sys.argv[1:]:
    try:
        config = complete_data(DataConfig(path=path))
        print(*[row.values["prompt"] for row in find_source(config, "train").rows()])
    except DataError as error:
        print("DataError:", error)
"""


def parquet(prompt: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"prompt": prompt, "response": "x"}]), buffer)
    return buffer.getvalue()


def jsonl(prompt: str) -> bytes:
    return json.dumps({"prompt": prompt, "response": "x"}).encode() + b"\n"


FILES = {
    "README.md": b"# data",
    "data/train-00000-of-00002.parquet": parquet("一"),
    "data/train-00001-of-00002.parquet": parquet("二"),
    "data/test.jsonl": jsonl("test"),
    "validation.csv": b"prompt,response\nheld,x\n",
}


def look(home: Path, endpoint: str, *paths: str, **environ: str) -> list[str]:
    """What each of ``paths`` holds, or the error, as a process with an empty environment of the hub's finds it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *paths],
        env={**clean, **settings, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_data_sets_are_listed_downloaded_once_and_had_offline_then(tmp_path: Path) -> None:
    with hub(FILES) as (endpoint, asked):
        paths = ["owner/open", "hub:owner/open@v1#test", "hub:owner/open#validation"]
        assert look(tmp_path, endpoint, *paths) == ["一 二", "test", "held"]
        downloads = [line for line in asked if line.startswith("GET /datasets/")]
        assert sorted(line.rsplit("/", 1)[-1] for line in downloads) == [
            "README.md", "test.jsonl", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation.csv",
        ]  # fmt: skip
        del asked[:]
        assert look(tmp_path, endpoint, "owner/open") == ["一 二"]
        assert not [line for line in asked if line.startswith("GET /datasets/")]
        assert look(tmp_path, endpoint, "hub:owner/gated#test", HF_TOKEN=TOKEN) == ["test"]
        del asked[:]
        offline = look(tmp_path, endpoint, "owner/open", "hub:owner/open@v1#test", "owner/else", HF_HUB_OFFLINE="1")
        assert offline[:2] == ["一 二", "test"]
        assert "owner/else is not in the local cache and HF_HUB_OFFLINE is set" in offline[2]
        assert not asked


def test_what_the_hub_refuses_is_one_line(tmp_path: Path) -> None:
    with hub(FILES) as (endpoint, _asked):
        gated, missing, revision, split = look(
            tmp_path, endpoint, "owner/gated", "owner/none", "hub:owner/open@v9", "hub:owner/open#extra"
        )
    assert gated == (
        f"DataError: the data set owner/gated is gated: ask for access at {endpoint}/datasets/owner/gated, "
        "then set HF_TOKEN"
    )
    assert f"there is neither a local path owner/none nor a data set of that name at {endpoint}" in missing
    assert revision == "DataError: the data set owner/open has no revision v9"
    assert "has no split 'extra' (found: test, train, validation)" in split


def test_the_card_says_which_files_make_a_split(tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: validation.csv\n---\n"
    with hub({**FILES, "README.md": card}) as (endpoint, _asked):
        assert look(tmp_path, endpoint, "owner/open") == ["held"]
    assert look(tmp_path, endpoint, "owner/open", HF_HUB_OFFLINE="1") == ["held"]


@pytest.mark.slow  # huggingface_hub tries five times, for half a minute
def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with hub(FILES) as (endpoint, _asked):
        (broken,) = look(tmp_path, endpoint, "owner/broken")
    assert f"the hub at {endpoint} answered 500 for the data set owner/broken" in broken
    (unreachable,) = look(tmp_path, endpoint, "owner/open")
    assert f"the data set owner/open cannot be had from {endpoint}: " in unreachable


def test_the_parts_of_a_name() -> None:
    assert parse_hub_id("hub:owner/name") == HubId("owner/name")
    assert parse_hub_id("hub:owner/name@refs/convert/parquet#en/test") == HubId(
        "owner/name", "refs/convert/parquet", "en/test"
    )
    with pytest.raises(DataError, match="is no data set of the hub; write hub:owner/name"):
        parse_hub_id("hub:name")
