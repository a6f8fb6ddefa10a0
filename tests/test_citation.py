"""CITATION.cff: the fields that its schema (1.2.0) requires, and the version of the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_package_and_cites_the_papers() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["authors"]
    assert (cited["title"], cited["version"], cited["license"]) == (project["name"], project["version"], "Apache-2.0")
    papers = {each["identifiers"][0]["value"] for each in cited["references"]}
    assert papers == {"arXiv:2511.17938", "arXiv:2504.16084", "arXiv:2508.11356"}
    assert all(each["type"] == "article" and each["title"] and each["authors"] for each in cited["references"])
