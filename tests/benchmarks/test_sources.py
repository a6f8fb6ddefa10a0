"""A release is found in a folder, a copy of the hub's, a saved data set or the caches, its images beside it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image

from mm_spine.benchmarks import hub
from mm_spine.benchmarks.arrow import arrow_rows
from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source
from mm_spine.benchmarks.images import Archive, ImageFinder
from mm_spine.benchmarks.release import Release, ReleasedBenchmark, open_release
from mm_spine.benchmarks.tables import read_table
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="owner/name",
    files={"test": ("data/test-*.parquet", "test.jsonl"), "train": ("train.csv",)},
    images=(".", "imgs", "imgs.zip"),
)
ROWS = [{"id": "1", "image": "a.png"}, {"id": "2", "image": "b/source.png"}]


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shade(image: Any) -> int:
    """The red of an image, opened as a question's is."""
    return open_image(image, "q").getpixel((0, 0))[0]


def shades(release: Release) -> list[int]:
    return [shade(release.images(row["image"])) for row in release.rows]


def jsonl(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def image_rows(count: int = 40) -> datasets.Dataset:
    """Rows with a cell image each, None in every fourth, and lists of images."""
    datasets.disable_progress_bars()
    rows = [
        {
            "id": str(number),
            "image": None if number % 4 == 3 else {"bytes": picture(number), "path": f"{number}.png"},
            "more": [{"bytes": picture(100 + number), "path": None}] * (number % 3),
            "raw": picture(200),
        }
        for number in range(count)
    ]
    several = datasets.List(datasets.Image())
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).cast_column("more", several)


def check_image_rows(release: Release, count: int = 40) -> None:
    assert [row["id"] for row in release.rows] == [str(number) for number in range(count)]
    for number in (0, 2, 17, count - 2):
        row = release.rows[number]
        assert shade(release.images(row["image"])) == number and shade(release.images(row["raw"])) == 200
        assert [shade(release.images(image)) for image in row["more"]] == [100 + number] * (number % 3)
    assert release.rows[3]["image"] is None and release.rows[-1]["image"] is None
    assert [row["id"] for row in release.rows[1:3]] == ["1", "2"]


# Folders


def test_jsonl_beside_a_folder_of_images(tmp_path: Path) -> None:
    jsonl(put(tmp_path, {"a.png": picture(1), "imgs/b/source.png": picture(2)}) / "test.jsonl")
    release = open_release(SOURCE, "test", str(tmp_path))
    assert (list(release.rows), release.place, release.problems) == (ROWS, str(tmp_path), ())
    assert release.images("a.png") == tmp_path / "a.png"
    assert shades(release) == [1, 2]


@pytest.mark.parametrize("top", ["", "imgs/", "release/v1/"])
def test_jsonl_beside_an_archive_whatever_folders_it_has_on_top(tmp_path: Path, top: str) -> None:
    jsonl(tmp_path / "test.jsonl")
    names = {top + "a.png": picture(1), top + "b/source.png": picture(2), top + "c/source.png": picture(3)}
    pack(tmp_path / "imgs.zip", names | {"__MACOSX/imgs/b/source.png": b"", "imgs/": b""})
    assert shades(open_release(SOURCE, "test", str(tmp_path))) == [1, 2]


def test_the_first_pattern_that_matches_wins_and_all_its_matches_are_read_in_order(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl")
    (tmp_path / "data").mkdir()
    for shard in (1, 0):
        image_rows().select(range(20 * shard, 20 * shard + 20)).to_parquet(tmp_path / f"data/test-0000{shard}.parquet")
    check_image_rows(open_release(SOURCE, "test", str(tmp_path)))


def test_the_folder_of_the_configuration_comes_first(tmp_path: Path) -> None:
    source = Source(hub="owner/name", files={"test": ("test.jsonl",)}, config="MM")
    jsonl(tmp_path / "test.jsonl", [{"id": "outside"}])
    assert open_release(source, "test", str(tmp_path)).rows[0] == {"id": "outside"}
    jsonl(tmp_path / "MM" / "test.jsonl", [{"id": "inside"}])
    assert open_release(source, "test", str(tmp_path)).rows[0] == {"id": "inside"}


def test_images_of_a_parquet_file_are_not_read_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_rows().to_parquet(tmp_path / "test.parquet")
    asked: list[int] = []

    def refuse(path: Path, column: str, row: int) -> None:
        asked.append(row)

    monkeypatch.setattr("mm_spine.benchmarks.arrow._parquet_cell", refuse)
    rows = list(read_table(tmp_path / "test.parquet").rows)
    assert len(rows) == 40 and rows[0]["image"].name == "0.png" and asked == []
    with pytest.raises(FileNotFoundError, match="no bytes of image '17.png'"):
        rows[17]["image"].read_bytes()
    assert asked == [17]


def test_cells_are_found_in_every_row_group(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image_rows().to_parquet(tmp_path / "data" / "test-0.parquet", batch_size=7)
    check_image_rows(open_release(SOURCE, "test", str(tmp_path)))


def test_a_column_of_names_without_bytes_is_looked_up(tmp_path: Path) -> None:
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = pa.table({"image": pa.array([{"path": "a.png"}, {"path": "gone.png"}, None], cell)})
    put(tmp_path, {"imgs/a.png": picture(5), "data/test-0.parquet": b""})
    pq.write_table(named, tmp_path / "data" / "test-0.parquet")
    release = open_release(SOURCE, "test", str(tmp_path))
    for rows in (release.rows, arrow_rows(named)):
        found = [release.images(row["image"]) for row in rows[:2]]
        assert found == [tmp_path / "imgs/a.png", tmp_path / "gone.png"] and rows[2]["image"] is None


def test_a_saved_data_set_and_one_of_several_splits(tmp_path: Path) -> None:
    shuffled = image_rows().select([*range(39, -1, -1)]).select([*range(39, -1, -1)])
    image_rows().save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=shuffled).save_to_disk(tmp_path / "several")
    for name in ("one", "several"):
        check_image_rows(open_release(SOURCE, "test", str(tmp_path / name)))
    with pytest.raises(ValueError, match="no split 'train' in this saved data set; it holds test"):
        open_release(SOURCE, "train", str(tmp_path / "several"))


def test_a_bad_line_costs_itself_and_is_a_problem_of_the_labelled_set(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl").write_bytes(b'{"id": "1"}\n{"id"\n\n{"id": "\xff"}\n[1]\n{"id": "2"}\n{"no": 1}\n')

    def read(row: Row, images: Images, index: int) -> Entry:
        return Entry(row["id"], "x", AnswerSpec("text"), ())

    benchmark = ReleasedBenchmark(name="demo", source=SOURCE, read=read, summary="")
    labelled = benchmark.load("test", str(tmp_path))
    assert [question.id for question in labelled.questions] == ["1", "2"]
    assert [problem.split(" skipped: ")[0] for problem in labelled.problems] == [
        "test.jsonl, line 2",
        "test.jsonl, line 4",
        "test.jsonl, line 5",
        "row 2",
    ]


def test_nothing_there_names_the_folder_the_patterns_and_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, {"notes.txt": b"", "imgs/a.png": b""})
    with pytest.raises(
        ValueError, match=r"no file of split 'test' \(looked for data/test-\*.parquet, test.jsonl\)"
    ) as e:
        open_release(SOURCE, "test", str(tmp_path))
    assert str(tmp_path) in str(e.value) and "it holds imgs/, notes.txt" in str(e.value)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        open_release(SOURCE, "test", str(tmp_path / "notes.txt"))
    with pytest.raises(ValueError, match="is no folder; give one, or a hub id"):
        open_release(SOURCE, "test", str(tmp_path / "absent"))


# Tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", '[{"id": "1", "q": "ä"}, {"id": "2", "q": "b"}]'),
        ("t.json", '{"version": 1, "data": [{"id": "1", "q": "ä"}, {"id": "2", "q": "b"}]}'),
        ("t.json", '{"1": {"q": "ä"}, "2": {"q": "b"}}'),
        ("t.json", '{"id": "1", "q": "ä"}\n{"id": "2", "q": "b"}\n'),
        ("t.jsonl", '\ufeff{"id": "1", "q": "ä"}\r\n\r\n{"id": "2", "q": "b"}'),
        ("t.csv", "\ufeffid,q\r\n1,ä\r\n2,b\r\n"),
        ("t.csv", 'id;q\n1;"ä"\n2;b\n'),
        ("t.tsv", "id\tq\n1\tä\n2\tb\n"),
    ],
)
def test_tables_of_every_format_hold_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    table = read_table(tmp_path / name)
    assert list(table.rows) == [{"id": "1", "q": "ä"}, {"id": "2", "q": "b"}]
    assert table.problems == ()


def test_a_bad_csv_line_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'id,q\n1,"two\nlines"\n2\n3,x,y\n4,\xff\n5,"x"y\n6,last\n')
    table = read_table(tmp_path / "t.csv")
    assert list(table.rows) == [{"id": "1", "q": "two\nlines"}, {"id": "6", "q": "last"}]
    assert list(table.numbers) == [3, 8]
    assert [number for number, _ in table.problems] == [4, 5, 6, 7]
    assert ["fewer" in table.problems[0][1], "more" in table.problems[1][1], "UTF-8" in table.problems[2][1]] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("t.json", b'{"a": [], "b": []}', "expected an array of objects"),
        ("t.json", b"3", "expected an array of objects"),
        ("t.json", b"[{", "not JSON"),
        ("t.json", b"\xff", "not UTF-8"),
        ("t.parquet", b"PAR1 no more", "not a Parquet file"),
        ("t.csv", b"Pr\xfcfung,id\n", "not UTF-8"),
        ("t.csv", b"id,q,id\n", "two columns are called 'id'"),
        ("t.xlsx", b"", "a table is one of .jsonl"),
    ],
)
def test_a_file_damaged_as_a_whole_is_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason) as error:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


# Images


def test_every_form_of_an_image_is_one(tmp_path: Path) -> None:
    images = ImageFinder(tmp_path, (".",))
    noise = os.urandom(3000)
    text = base64.b64encode(noise).decode()
    assert images({"bytes": noise, "path": "x.png"}) == images(noise) == images(text) == noise
    assert images(f"data:image/png;base64,{text[:76]}\n{text[76:]}") == noise
    assert shade(images(Image.new("RGB", (2, 2), (9, 0, 0)))) == 9
    put(tmp_path, {"a.png": picture(3)})
    assert images({"bytes": None, "path": "a.png"}) == images("./a.png") == tmp_path / "a.png"
    for nothing in (None, "", "  ", 5, {}, []):
        with pytest.raises(ValueError, match="no image: found"):
            images(nothing)


def test_an_absent_image_is_the_path_where_it_should_be(tmp_path: Path) -> None:
    pack(tmp_path / "imgs.zip", {"imgs/a.png": picture(1)})
    assert ImageFinder(tmp_path, ("imgs", "imgs.zip"))("b/gone.png") == tmp_path / "b" / "gone.png"


def test_the_name_may_or_may_not_start_with_the_folder_it_is_in(tmp_path: Path) -> None:
    pack(put(tmp_path, {"flat/x.png": picture(1)}) / "imgs.zip", {"y.png": picture(2)})
    images = ImageFinder(tmp_path, ("flat", "imgs.zip"))
    assert [shade(images(name)) for name in ("x.png", "flat/x.png", "y.png", "imgs/y.png")] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "name", ["../secret.png", "imgs/../../secret.png", "/etc/hostname", "imgs/link.png", "up/secret.png"]
)
def test_no_name_and_no_link_leads_out(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path / "release", {"imgs/a.png": picture(1)})
    put(tmp_path, {"secret.png": picture(2)})
    os.symlink(tmp_path / "secret.png", folder / "imgs" / "link.png")
    os.symlink(tmp_path, folder / "up")
    with pytest.raises(ValueError, match="leaves the folder|link out of"):
        ImageFinder(folder, (".", "imgs"))(name)


def test_an_ambiguous_name_in_an_archive_is_refused(tmp_path: Path) -> None:
    names = {"a/x.png": picture(1), "b/x.png": picture(2), "y.png": picture(3), "b/y.png": picture(4)}
    images = ImageFinder(pack(tmp_path / "imgs.zip", names).parent, ("imgs.zip",))
    assert shade(images("b/x.png")) == 2 and shade(images("y.png")) == 3
    with pytest.raises(ValueError, match="may be a/x.png or b/x.png in imgs.zip"):
        images("x.png")


def test_a_damaged_member_is_named_when_it_is_opened(tmp_path: Path) -> None:
    image = ImageFinder(pack(tmp_path / "imgs.zip", {"a/x.png": picture(1)[:40]}).parent, ("imgs.zip",))("a/x.png")
    with pytest.raises(BadQuestion, match=r"q7: cannot read image a/x\.png in .*imgs\.zip: damaged"):
        open_image(image, "q7")


def test_a_member_that_unpacks_too_large_and_a_broken_archive_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm_spine.benchmarks.images.MEMBER_LIMIT", 50)
    archive = Archive(pack(tmp_path / "imgs.zip", {"a.png": bytes(51), "b.png": bytes(50)}))
    member, small = archive.find("a.png"), archive.find("b.png")
    assert member is not None and small is not None and small.read_bytes() == bytes(50)
    with pytest.raises(ValueError, match="a.png in .*imgs.zip unpacks to 51 bytes, the limit is 50"):
        member.read_bytes()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="broken.zip: not a zip archive"):
        ImageFinder(tmp_path, ("broken.zip",))("a.png")


# The hub


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
