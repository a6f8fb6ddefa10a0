"""The picture of the rooms is what its script draws, and nothing in the package imports in a circle."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import write_architecture as architecture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def modules(repository: Path) -> dict[str, architecture.Module]:
    return architecture.read_modules(repository)


def test_nothing_imports_in_a_circle(modules: dict[str, architecture.Module]) -> None:
    assert {"mm_spine.benchmarks.digits", "mm_spine.processors.chat"} <= modules.keys()  # through the links
    assert architecture.all_circles(modules, architecture.import_graph(modules)) == []


def test_the_picture_is_what_the_script_writes_now(repository: Path) -> None:
    written = (repository / "docs" / "architecture.svg").read_text()
    assert written == architecture.picture(repository), "run python scripts/write_architecture.py"
    assert not re.search(r"<script|href=|@import|url\(http", written)


def test_labels_stay_in_their_boxes_and_arrows_out_of_them(repository: Path) -> None:
    drawn = ElementTree.fromstring(architecture.picture(repository))
    boxes = [
        tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        for box in drawn.iter(f"{SVG}rect")
        if "x" in box.attrib
    ]
    labels = [text for text in drawn.iter(f"{SVG}text") if text.text not in architecture.CAPTION]
    assert len(labels) == len(boxes) > 20
    for label, (left, _, width, _) in zip(labels, boxes, strict=True):
        assert width > len(str(label.text)) * architecture.CHARACTER
        assert float(label.attrib["x"]) == pytest.approx(left + width / 2, abs=0.2)
    for a in boxes:
        assert not [b for b in boxes if a is not b and a[1] == b[1] and a[0] < b[0] + b[2] and b[0] < a[0] + a[2]]
    for path in drawn.iter(f"{SVG}path"):
        for x, top, drop in re.findall(r" ([\d.]+) ([\d.]+) V([\d.]+)", path.attrib["d"]):
            passed = [b for b in boxes if b[0] <= float(x) <= b[0] + b[2] and float(top) <= b[1] < float(drop)]
            assert not passed


def package(folder: Path, **files: str) -> dict[str, architecture.Module]:
    """Write a package of the given files (`___` in a name is `/`) and read it."""
    for name, text in {"__init__": "", **files}.items():
        path = folder / "mm_spine" / f"{name.replace('___', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return architecture.read_modules(folder)


def test_late_and_typing_only_and_relative_imports_count(tmp_path: Path) -> None:
    found = package(
        tmp_path,
        a="def late():\n    from mm_spine.b import x\n",
        b="from typing import TYPE_CHECKING\nx = 1\nif TYPE_CHECKING:\n    from . import c\n",
        c="import mm_spine.a\ny = 1\n",
        only='"""Nothing else."""\nfrom mm_spine.c import y\n',
    )
    imports = architecture.import_graph(found)
    assert architecture.room_graph(found, imports) == {"a": {"b"}, "b": {"c"}, "c": {"a"}}
    assert architecture.all_circles(found, imports) == [["a", "b", "c"]]
    with pytest.raises(ValueError, match="circle: a <-> b <-> c"):
        architecture.picture(tmp_path)


def test_a_circle_inside_a_package_is_found(tmp_path: Path) -> None:
    found = package(
        tmp_path,
        p___x="from mm_spine.p.y import b\na = 1\n",
        p___y="def late():\n    from mm_spine.p import x\n",
        p_____init__="",
    )
    assert architecture.all_circles(found, architecture.import_graph(found)) == [["mm_spine.p.x", "mm_spine.p.y"]]


def test_arrows_that_follow_from_others_are_left_out() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert architecture.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert architecture.layer_of(graph) == {"a": 0, "b": 1, "c": 2}
