"""The report of a run and the page of a comparison, from synthetic folders and from one real run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from saved_runs import BEFORE, text_of, undrawn, write_run
from small import small_config, write_data, write_model
from typer.testing import CliRunner

from mm_spine import cli
from mm_spine.reporting import changes, report, thumbnails
from mm_spine.reporting.saved_run import read_run
from mm_spine.runs.run import run


def test_the_page_says_what_the_run_was_worth(finished: Path) -> None:
    text = text_of(finished)
    assert "spine on digits" in text
    assert "label-free: adapting read no gold answer" in text
    assert (
        text.count("frozen") == 1 and "frozen: 1,234,567 parameters, the checksum of the vision tower unchanged" in text
    )
    assert "2.50 GB" in text and "1 min 10 s" in text
    assert "One greedy answer is right on 50.0 % of 4 questions, before on 50.0 %: +0.0 points" in text
    assert "no difference that these questions could show" in text
    assert "maj@4" in text and "Held-out questions" in text
    assert "Not on this page" not in text
    assert "1 questions could not be asked" in text and "z: cannot read image" in text and "row 7: no answer" in text


def test_equal_files_give_the_same_page_and_matplotlib_stays_as_it_was(finished: Path) -> None:
    before = dict(matplotlib.rcParams)
    assert report.render_report(read_run(finished)) == (finished / "report.html").read_text()
    assert dict(matplotlib.rcParams) == before


def test_an_unfinished_run_has_a_page(copy: Path) -> None:
    for name in ("summary.json", "evaluation/after.jsonl"):
        (copy / name).unlink()
    text = text_of(copy)
    assert "unfinished: no summary.json" in text and "Majority share" in text


def test_a_run_of_no_steps_has_a_page(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run", BEFORE, BEFORE, steps=0))
    assert "The run has no step" in text and "No question's greedy answer turned" in text
    assert "The run made no step: before and after are one evaluation" in text


@pytest.mark.slow
def test_the_command_writes_page_and_figures(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    apart = CliRunner().invoke(cli.app, ["report", str(copy), "--output", str(tmp_path / "apart.html")])
    assert apart.exit_code == 0 and (tmp_path / "apart.html").is_file() and not (copy / "figures").exists()
    done = CliRunner().invoke(cli.app, ["report", str(copy)])
    assert done.exit_code == 0, done.output
    assert (copy / "report.html").is_file() and (copy / "figures" / "loss.png").is_file()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    run(small_config(_own(root)), root / "run")
    return root


def _own(root: Path) -> dict[str, Any]:
    return {"benchmark": str(write_data(root / "data")), "model": {"path": str(write_model(root / "model"))}}


@pytest.mark.slow
def test_a_run_ends_with_its_report(real: Path) -> None:
    assert "Not on this page" not in text_of(real / "run") or "images/" in text_of(real / "run")
    assert (real / "run" / "report.html").stat().st_size > 50_000
    assert (real / "run" / "figures" / "entropy_histogram.png").is_file()


def test_only_the_questions_that_changed_have_thumbnails(real: Path) -> None:
    saved = read_run(real / "run")
    shown = [change.key[1] for change in changes.changes_of(saved.path).all()]
    wanted = {f"{thumbnails.file_stem(name)}.png" for name in shown}
    folder = real / "run" / "images"
    assert {path.name for path in folder.iterdir()} == wanted if wanted else not folder.exists()
    assert {name for _, name in saved.questions} == set(shown)


def test_a_failing_report_does_not_lose_the_run_and_without_images_none_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: Path) -> Path:
        raise RuntimeError("no room")

    monkeypatch.setattr(report, "write_report", fail)
    with caplog.at_level(logging.ERROR):
        summary = run(small_config(_own(tmp_path), {"reporting": {"images": False}}), tmp_path / "run")
    assert summary is not None and (tmp_path / "run" / "summary.json").is_file()
    assert "the run is complete, its report is not" in caplog.text and "mm-spine report" in caplog.text
    assert not (tmp_path / "run" / "images").exists()
    html = undrawn(tmp_path / "run")
    assert "data:image" not in html and "reporting.images was false" in html


def test_a_page_is_not_written_over_a_folder(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder; give the name of the page in it"):
        report.write_report(copy, tmp_path)
