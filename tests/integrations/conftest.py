"""lmms-eval's caches in a temporary folder, its model, and a folder of questions to ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import tiny_image

from mm_spine.integrations import lmms_hook


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """lmms-eval copies each list of questions to a cache, which is not to be the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def harness() -> Any:
    """The model's module, imported as a run does: with nothing else of the process changed."""
    with lmms_hook.unchanged():
        from mm_spine.integrations import lmms_eval
    return lmms_eval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own questions: two images within a prompt, options, an image on its side, none at all, and no gold."""
    path = tmp_path_factory.mktemp("own") / "scans"
    path.mkdir()
    for i in range(3):
        tiny_image(i).save(path / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny_image(5).save(path / "turned.jpg", exif=exif, quality=95)
    rows = [
        {"images": ["0.png", "1.png"], "prompt": "Is <image2> like\n\n<image1>, <image1>?", "kind": "integer"},
        {"image": "2.png", "prompt": "Which?", "choices": ["one", "two"], "answer": "B"},
        {"image": "turned.jpg", "prompt": "Which digit?", "kind": "integer", "answer": ["1", "2", "11", "12", "22"]},
        {"prompt": "Nothing to see: which digit?", "kind": "integer", "answer": 2},
    ]
    (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
