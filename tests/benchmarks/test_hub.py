"""A release is read from the hub's cache or that of `datasets`, and a failure says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx2
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory
from releases import ROWS, SOURCE, check_image_rows, image_rows, picture, put, shade, shades

from mm_spine.benchmarks import hub
from mm_spine.benchmarks.benchmark import Source
from mm_spine.benchmarks.images import ImageFinder
from mm_spine.benchmarks.release import open_release
from mm_spine.policy.folder import ModelAbsent, resolve_model


def cached_on_the_hub(home: Path, files: Mapping[str, bytes], hub: str = "owner/name", revision: str = "main") -> Path:
    """A cache as huggingface_hub keeps it: blobs, and a snapshot of links to them."""
    repository = home / "hub" / f"datasets--{hub.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    put(repository, {f"refs/{revision}": b"0" * 40})
    put(repository / "blobs", {str(number): data for number, data in enumerate(files.values())})
    for number, name in enumerate(files):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(repository / "blobs" / str(number), snapshot / name)
    return snapshot


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the hub's library, offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    return tmp_path / "home"


ON_THE_HUB = {
    "test.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "imgs/a.png": picture(1),
    "imgs/b/source.png": picture(2),
}


def test_a_cached_snapshot_is_read_offline_its_links_followed(home: Path) -> None:
    snapshot = cached_on_the_hub(home, ON_THE_HUB)
    release = open_release(SOURCE, "test")
    assert (list(release.rows), release.place) == (ROWS, str(snapshot))
    assert shades(release) == [1, 2]
    assert shades(open_release(SOURCE, "test", str(snapshot))) == [1, 2]


def test_another_hub_id_and_revision(home: Path) -> None:
    cached_on_the_hub(home, ON_THE_HUB, "some/copy", "v2")
    assert shades(open_release(SOURCE, "test", "some/copy@v2")) == [1, 2]
    with pytest.raises(ValueError, match="^some/copy@main, split 'test' .and there is no folder"):
        open_release(SOURCE, "test", "some/copy")


def test_offline_without_a_copy_says_what_was_tried_and_how_to_give_another(home: Path) -> None:
    source = Source(hub="owner/name", files=SOURCE.files, config="MM", revision="abc")
    with pytest.raises(
        ValueError, match="^owner/name@abc, configuration 'MM', split 'test': HF_HUB_OFFLINE is"
    ) as error:
        open_release(source, "test")
    assert "source=FOLDER" in str(error.value) and "source=owner/name" in str(error.value)


def test_a_snapshot_without_the_split_says_what_it_holds(home: Path) -> None:
    cached_on_the_hub(home, ON_THE_HUB)
    with pytest.raises(
        ValueError, match=r"no file of split 'train' \(looked for train.csv\).* holds imgs/, test.jsonl"
    ):
        open_release(SOURCE, "train")


def test_only_the_files_of_the_split_are_fetched_and_images_once_a_row_names_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached_on_the_hub(home, ON_THE_HUB)
    fetched: list[list[str]] = []

    def fetch(hub: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert (hub, repo_type, revision) == ("owner/name", "dataset", "main")
        fetched.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    release = open_release(SOURCE, "test")
    release.images({"bytes": b"x", "path": "a.png"})
    assert fetched == [["data/test-*.parquet"], ["test.jsonl"]]
    assert shades(release) == [1, 2]
    assert fetched[2:] == [["imgs", "imgs/*", "imgs.zip", "imgs.zip/*"]]


def test_offline_a_layout_that_is_not_cached_whole_does_not_hide_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached_on_the_hub(home, ON_THE_HUB)

    def fetch(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        if allow_patterns == ["test.jsonl"]:
            return str(snapshot)
        raise IncompleteSnapshotError("a shard is missing", str(snapshot))

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert list(open_release(SOURCE, "test").rows) == ROWS
    with pytest.raises(ValueError, match="its copy in the cache lacks the files"):
        open_release(SOURCE, "train")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "gated; accept its terms on its hub page and set HF_TOKEN"),
        (RepositoryNotFoundError, "no such data set on the hub, or it is private"),
        (RevisionNotFoundError, "no such revision"),
    ],
)
def test_what_the_hub_says_is_said_plainly(home: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, said: str) -> None:
    response = SimpleNamespace(headers={}, request=None, status_code=404)

    def fail(*_: Any, **__: Any) -> str:
        raise kind("no", response=response)

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=said):
        open_release(SOURCE, "test")


def test_images_that_cannot_be_fetched_cost_no_row(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = cached_on_the_hub(home, {"test.jsonl": ON_THE_HUB["test.jsonl"]})
    release = open_release(SOURCE, "test")

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert [release.images(row["image"]) for row in release.rows] == [snapshot / row["image"] for row in ROWS]
    assert caplog.text.count("OSError: disk full") == 1


def test_a_cache_of_datasets_serves_where_the_hub_has_none(home: Path) -> None:
    image_rows().to_parquet(home.parent / "rows.parquet")
    Parquet(
        cache_dir=str(home / "datasets"),
        dataset_name="name",
        config_name="MM",
        hash="0" * 16,
        data_files={"validation": [str(home.parent / "rows.parquet")]},
    ).download_and_prepare()
    os.rename(home / "datasets" / "name", home / "datasets" / "owner___name")
    (config,) = (home / "datasets" / "owner___name").iterdir()
    config.rename(config.with_name("MM"))
    source = Source(hub="owner/name", files=SOURCE.files, config="MM", hub_splits={"test": "validation"})
    release = open_release(source, "test")
    check_image_rows(release)
    assert release.place == "owner/name@main in the cache of datasets"


def test_a_file_in_the_caches_of_datasets_is_an_image_and_no_other_full_path(home: Path) -> None:
    put(home, {"hub/x/a.png": picture(7), "elsewhere/a.png": picture(8)})
    find = ImageFinder(home, (".",))
    cached = hub.cached_image(find, {"bytes": None, "path": str(home / "hub/x/a.png")})
    assert shade(cached) == 7
    with pytest.raises(ValueError, match="leaves the folder"):
        hub.cached_image(find, {"bytes": None, "path": str(home / "elsewhere/a.png")})


def test_offline_by_the_environment_alone(tmp_path: Path) -> None:
    cached_on_the_hub(tmp_path, ON_THE_HUB)
    code = (
        "from mm_spine.benchmarks.benchmark import Source\n"
        "from mm_spine.benchmarks.release import open_release\n"
        "source = Source('owner/name', {'test': ('test.jsonl',)}, images=('imgs',))\n"
        "release = open_release(source, 'test')\n"
        "print([release.images(row['image']).is_file() for row in release.rows])\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment = {
        name: value for name, value in environment.items() if name not in ("HF_HUB_CACHE", "HF_DATASETS_CACHE")
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[True, True]\n"


@pytest.fixture(params=[httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError])
def unreachable(home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """No offline mode, but a network on which nothing answers. Returns the addresses that were asked for."""
    asked: list[str] = []

    def refuse(asking: Any) -> Any:
        asked.append(str(asking.url))
        raise request.param("no network", request=asking)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s for a hub that is not there"))
    set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(refuse)))
    yield asked
    set_client_factory(default_client_factory)


def test_an_unreachable_hub_is_one_sentence_and_is_not_asked_again(
    unreachable: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="^owner/name@main, split 'test': the hub cannot be reached and") as refused:
        open_release(SOURCE, "test")
    assert "\n" not in str(refused.value) and "source=FOLDER" in str(refused.value)
    # One request for each pattern of the split at most, and nothing from `datasets`, which would ask six times.
    assert 1 <= len(unreachable) <= len(SOURCE.patterns("test"))
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_an_unreachable_hub_still_serves_what_is_cached(home: Path, unreachable: list[str]) -> None:
    cached_on_the_hub(home, ON_THE_HUB)
    assert shades(open_release(SOURCE, "test")) == [1, 2]


def test_a_model_on_an_unreachable_hub_is_one_sentence(unreachable: list[str]) -> None:
    with pytest.raises(ModelAbsent, match="^model=owner/model: not on this machine, and it cannot be fetched") as said:
        resolve_model("owner/model")
    assert "\n" not in str(said.value) and len(unreachable) <= 2
