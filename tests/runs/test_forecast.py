"""The forecast in a run's summary.json and from `mm-spine forecast`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from lab import Lab, summary_of
from small import golds_of
from typer.testing import CliRunner

from mm_spine import files
from mm_spine.cli import app
from mm_spine.config import ConfigError


def answers_taken_out(lab: Lab, folder: Path) -> Path:
    """Copy the laboratory's questions without their answers."""
    shutil.copytree(lab.data, folder)
    rows = files.read_json_lines(folder / "questions.jsonl")
    for row in rows:
        row.pop("answer", None)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_saves_the_forecast_of_its_starting_model(lab: Lab) -> None:
    found = summary_of(lab.run("forecast", {"evaluation": {"samples": 4}}))["forecast"]
    assert found["n"] == summary_of(lab.run("forecast"))["before"]["n"]
    assert found["verdict"] in ("adapt", "vote", "keep", "neither")
    assert found["sentences"][-1].startswith("Forecast: ")


def test_the_command_forecasts_then_reads_labels_back(lab: Lab, tmp_path: Path) -> None:
    data, output = answers_taken_out(lab, tmp_path / "data"), tmp_path / "run"
    command = ["forecast", str(lab.model), str(data), "--output", str(output), "evaluation.samples=4", "threads=1"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    sentences = summary_of(output)["forecast"]["sentences"]
    assert sentences[-1] in first.output.replace("\n", " ")

    drawn = CliRunner().invoke(app, [*command, "--labels", "4"])
    assert drawn.exit_code == 0 and "fill in the column answer" in drawn.output
    sheet = output / "labels.csv"
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    files.write_csv(sheet, [{**row, "answer": golds_of("1")[0]} for row in rows])

    read = CliRunner().invoke(app, [*command, "--labels", "4"])
    assert read.exit_code == 0, read.output
    figures = summary_of(output)["before"]
    assert figures["n_labelled"] == 4
    low, high = figures["greedy_ci95"]
    expected = f"On 4 labelled questions one greedy answer is right on {figures['greedy']:.0%} [{low:.0%}, {high:.0%}]."
    assert expected in read.output
    assert "The vote over the greedy answer: " in read.output

    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        CliRunner().invoke(app, [*command, "seed=3"], catch_exceptions=False)


def test_labels_need_a_folder_to_keep_the_sheet_in(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="--labels=4 needs --output"):
        CliRunner().invoke(app, ["forecast", "m", "digits", "--labels", "4"], catch_exceptions=False)
