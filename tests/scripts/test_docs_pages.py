"""The documentation as a site: it builds without a network, its links lead somewhere, its messages can be searched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from loaded_scripts import load_script

pytest.importorskip("material", reason='no mkdocs-material: pip install -c constraints.txt "mm-spine[docs]"')


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hooks, scripts/docs_pages.py."""
    return load_script("docs_pages")


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    html = sorted(site.rglob("*.html"))
    assert len(html) > 20
    for path in html:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", path.read_text()
        )
        assert not loaded, path.name


@pytest.mark.slow
def test_every_message_of_the_faq_can_be_searched(site: Path, repository: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    entries = [entry for entry in found if entry["location"].startswith("faq.html#")]
    messages = re.findall(r"^### ", (repository / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(entries) >= len(messages) > 50
    assert any("train_rollouts=... is more than votes" in entry["title"] for entry in entries)


@pytest.mark.slow
def test_the_start_page_is_the_readme_and_files_of_the_checkout_are_there(site: Path, repository: Path) -> None:
    start = (site / "index.html").read_text()
    assert 'href="tour.html"' in start and 'src="loop.svg"' in start
    assert (site / "files" / "configs" / "slake.yaml").read_text() == (
        repository / "configs" / "slake.yaml"
    ).read_text()
    assert (site / "changelog.html").is_file()


def test_links_are_moved_with_their_page_and_code_is_left_alone(pages: ModuleType) -> None:
    text = "[a](docs/tour.md#x) `[b](docs/tour.md)` [c](https://example.org/a) ![d](docs/loop.svg) [e](#here)\n"
    moved = "[a](tour.md#x) `[b](docs/tour.md)` [c](https://example.org/a) ![d](loop.svg) [e](#here)\n"
    assert pages.relinked(text, "README.md", "index.md") == moved
    assert pages.relinked("[a](../../README.md)", "docs/results/step.md", "results/step.md") == "[a](../index.md)"
    assert pages.relinked("[a](../pyproject.toml)", "docs/a.md", "a.md") == "[a](files/pyproject.toml)"


def test_a_link_to_no_file_ends_the_build(pages: ModuleType) -> None:
    with pytest.raises(pages.PluginError, match=r"configs/no\.yaml"):
        pages.relinked("[a](../configs/no.yaml)", "docs/a.md", "a.md")
