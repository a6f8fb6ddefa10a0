"""Frames of a video, found by their time."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from mm_spine.processors.video import seconds
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import ImagePart


def clip(n: int = 30, rate: int = 10, form: str = "mp4") -> bytes:
    """A video whose frame k, from 0, has the grey 8 k."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 64
        stream.bit_rate = 10_000_000
        stream.pix_fmt = "yuv420p"
        for k in range(n):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * k, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def grey(file: bytes, how: str) -> int:
    return int(np.asarray(open_image(ImagePart(file, how), "q")).mean().round())


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi"])
def test_the_chosen_frame_is_shown(form: str) -> None:
    file = clip(form=form)
    for k in (1, 12, 13, 30):
        assert abs(grey(file, f"frame={k}") - 8 * (k - 1)) <= 3
    assert abs(grey(file, "frame=1/3") - 8 * 5) <= 3
    assert open_image(ImagePart(file, "grid=2x2"), "q").size == (128, 128)


def test_its_length_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clip(25, 5))
    assert seconds(tmp_path / "a.mp4") == 5.0


@pytest.mark.parametrize(("file", "how"), [(clip()[:300], "1"), (b"\x1aE\xdf\xa3" + bytes(99), "1")])
def test_a_damaged_one_says_so(file: bytes, how: str) -> None:
    with pytest.raises(BadQuestion, match="damaged or truncated"):
        grey(file, how)


def test_without_av_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadQuestion, match=r'pip install "mm-spine\[video\]"'):
        open_image(clip(), "q")
