"""What the page shows of the model and of uploads: names escaped, pictures small, faults in words."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mm_spine.commands.ask_session import AskOptions, ask_settings
from mm_spine.commands.page_example import SIZE, SUM, example_for, shapes
from mm_spine.commands.page_html import KINDS, SIDE, header_of, preview_of
from mm_spine.commands.question_queue import MAX_IMAGES, Upload
from mm_spine.processors.answers import known_kinds

HOSTILE = '"><img src=x onerror=alert(1)>${alert(2)}`'


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "PNG")
    return out.getvalue()


def test_a_preview_is_small_and_names_its_image() -> None:
    html = preview_of([Upload("scan.png", png(2000, 500))])
    assert "scan.png, 2000 × 500" in html
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIDE, SIDE // 4)


def test_an_unreadable_upload_says_why_without_an_id_and_hides_no_other() -> None:
    dicom = Upload("scan.dcm", bytes(128) + b"DICM" + bytes(40))
    html = preview_of([dicom, Upload("a.png", png(4, 4))])
    assert re.search(r'<p class="problem" role="alert">cannot read image scan\.dcm: ', html)
    assert html.count("<img ") == 1


def test_names_of_files_are_shown_as_text() -> None:
    for data in (png(4, 4), b"no image"):
        html = preview_of([Upload(HOSTILE, data)])
        assert "<img src=x" not in html and "$" not in html and "{" not in html and "`" not in html


def test_nothing_stands_where_nothing_was_uploaded_and_no_more_than_the_limit() -> None:
    assert preview_of(()) == ""
    assert preview_of([Upload("a.png", png(2, 2))] * (MAX_IMAGES + 3)).count("<img ") == MAX_IMAGES


@pytest.fixture
def policy() -> Any:
    """As much of a policy as the head of the page reads."""
    return SimpleNamespace(model=torch.nn.Linear(1000, 2500, bias=False), device=torch.device("cpu"))


def test_the_head_names_the_model_and_no_folder_of_this_machine(policy: Any, tmp_path: Path) -> None:
    html = header_of(policy, ask_settings(AskOptions()))
    assert "<strong>digits_model</strong>" in html and "2.5 million parameters" in html and "float32" in html
    assert str(Path(ask_settings(AskOptions()).model).parent) not in html
    settings = ask_settings(AskOptions())
    named = SimpleNamespace(model="Qwen/Qwen2.5-VL-3B-Instruct", config=settings.config)
    assert "<strong>Qwen/Qwen2.5-VL-3B-Instruct</strong>" in header_of(policy, named)  # type: ignore[arg-type]
    assert "<img" not in header_of(policy, SimpleNamespace(model=HOSTILE, config=settings.config))  # type: ignore[arg-type]


def test_every_kind_that_can_be_chosen_has_words() -> None:
    assert set(known_kinds()) <= KINDS.keys()


def test_the_example_suits_the_model(tmp_path: Path) -> None:
    settings = ask_settings(AskOptions())
    example = example_for(settings)
    assert (example.name, example.words) == ("digits.png", SUM)
    other = example_for(SimpleNamespace(benchmark=None))  # type: ignore[arg-type]
    path = other.saved(tmp_path)
    assert path == other.saved(tmp_path) and path.name == "shapes.png"
    picture = Image.open(path)
    assert picture.size == SIZE and len(set(shapes().convert("RGB").getcolors(2**20) or ())) == 4
    # Left to right, as its question asks: circle, square.
    assert picture.getpixel((90, 168)) == (200, 40, 40) and picture.getpixel((224, 168)) == (40, 80, 190)
