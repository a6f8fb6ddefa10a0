"""scripts/check_wheel.py: what a wheel lacks or should not hold is named, and the demo runs from the wheel alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lmms import LAUNCHERS_OWN
from loaded_scripts import load_script


@pytest.fixture(scope="module")
def check_wheel() -> ModuleType:
    return load_script("check_wheel")


def test_a_file_too_few_or_too_many_is_named(check_wheel: ModuleType) -> None:
    names = ["mm_spine/cli.py", "processors/chat.py", "mm_spine/reporting/page.css", "docs/faq.md"]
    whole = [
        "mm_spine/cli.py",
        "mm_spine/processors/chat.py",
        "mm_spine/reporting/page.css",
        "x.dist-info/licenses/LICENSE",
    ]
    assert list(check_wheel.file_problems(whole, names)) == []
    assert list(check_wheel.file_problems([*whole[:2], "docs/faq.md", whole[0]], names)) == [
        "docs: a top-level name beside mm_spine",
        "mm_spine/reporting/page.css: missing from the wheel",
        "mm_spine/cli.py: in the wheel more than once",
        "LICENSE: missing from the wheel",
    ]


ENTRY_POINTS = "[console_scripts]\nmm-spine = mm_spine.cli:main\nmm_spine = mm_spine.integrations:manifest\n"


@pytest.fixture
def project(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return found


def metadata(project: dict[str, Any], **changed: str) -> Message:
    message = Message()
    fields = {"Name": project["name"], "Version": project["version"], "Summary": project["description"]}
    fields |= {"Requires-Python": project["requires-python"], "License-Expression": project["license"]}
    for name, value in (fields | {"Description-Content-Type": "text/markdown"} | changed).items():
        message[name] = value
    for extra in project["optional-dependencies"]:
        message["Provides-Extra"] = extra
    for line in project["dependencies"]:
        message["Requires-Dist"] = line
    message.set_payload("# mm-spine\n")
    return message


def test_metadata_that_is_not_the_project_s_is_named(check_wheel: ModuleType, project: dict[str, Any]) -> None:
    right = metadata(project)
    assert list(check_wheel.metadata_problems(right, ENTRY_POINTS, project)) == []
    wrong = metadata(project, Version="9")
    wrong["Requires-Dist"] = "other @ https://example.org/other.whl"
    wrong["Provides-Extra"] = "more"
    problems = list(check_wheel.metadata_problems(wrong, ENTRY_POINTS.replace("cli:main", "cli:go"), project))
    assert [" ".join(problem.split()[:3]) for problem in problems] == [
        "METADATA: Version is",
        "METADATA: extras differ",
        "METADATA: other @",
        "entry_points.txt: mm-spine =",
    ]
    assert problems[1].endswith("in more")


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_outside_the_checkout(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "scripts" / "check_wheel.py"), "--demo", "--keep", str(tmp_path)]
    # Other tests leave some of a launcher's variables behind, with which a run would wait for other ranks.
    alone = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_OWN}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs in" in done.stdout and len(list(tmp_path.glob("mm_spine-*.whl"))) == 1
