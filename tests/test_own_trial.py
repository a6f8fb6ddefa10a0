"""The trial of docs/data.md, on fewer questions: a folder without answers, adapted to, and labelled afterwards."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm_spine.cli import app

SECTION = "## A trial without answers"


def trial(repository: Path) -> tuple[list[str], list[str]]:
    """The Python blocks and the commands of the section, in order."""
    text = (repository / "docs/data.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return blocks, re.findall(r"^\$ mm-spine (.*)$", text, re.MULTILINE)


@pytest.mark.slow
def test_the_trial_of_the_docs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_folder, fill_in), (adapt, draw, read, compare) = trial(repository)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(repository / "benchmarks")
    monkeypatch.setattr("sys.argv", ["mm-spine"])

    def call(command: str, *more: str) -> str:
        ended = CliRunner().invoke(app, [*shlex.split(command), *more])
        assert ended.exit_code == 0, ended.output
        return ended.output

    exec(write_folder.replace("48", "16"), {})
    rows = (tmp_path / "digits-own/questions.jsonl").read_text().splitlines()
    assert len(rows) == 16 and not any("answer" in json.loads(row) for row in rows)

    said = call(adapt, "optim.steps=2", "optim.questions_per_step=4")
    assert said.startswith("own.yaml, for any model: ") and "for a text model of 0.8 million parameters" in said
    assert "of 16 greedy answers changed" in said and "mm-spine label runs/mine --n 16" in said
    with Path("runs/mine/answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 16 and {row["changed"] for row in answers} <= {"yes", "no"}

    assert "16 questions; fill in the column answer" in call(draw)
    exec(fill_in.replace("48", "16"), {})
    said = call(read)
    assert "of 16 questions" in said and re.search(r"\[[+-]\d+\.\d, [+-]\d+\.\d\]", said)
    assert "evaluation/steps.jsonl is not in the folder" not in Path("runs/mine/report.html").read_text()
    assert re.search(r"n=16.*\[[+-]\d+\.\d, [+-]\d+\.\d\]", call(compare), re.DOTALL)
