"""A release is found in a folder, a copy of the hub's or a saved data set, its images beside it."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from releases import ROWS, SOURCE, check_image_rows, image_rows, jsonl, pack, picture, put, shades

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source
from mm_spine.benchmarks.release import ReleasedBenchmark, open_release
from mm_spine.types import AnswerSpec


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
