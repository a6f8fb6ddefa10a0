"""Show frames of a video. Each is an image of its question: see docs/data.md for why."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from mm_spine.processors.greys import check_size, tiled
from mm_spine.processors.parts import Part, Unreadable

NEEDS = 'it is a video; pip install "mm-spine[video]" to read it'
_DAMAGED = "damaged or truncated, or of a codec that FFmpeg does not read; save it as MP4"

# MP4 and QuickTime (ISO/IEC 14496-12; not the brands of still images), Matroska and WebM, AVI, MPEG-PS.
_MAGIC = re.compile(
    rb".{4}ftyp(?!hei|hev|mif|msf|avi|jp)|.{4}(moov|mdat|wide)|\x1aE\xdf\xa3|RIFF.{4}AVI |\0\0\x01\xba", re.S
)


def is_video(data: bytes) -> bool:
    """Return whether the bytes begin like a video in a common container."""
    return _MAGIC.match(data[:16]) is not None


def open_video(data: bytes, part: Part, pixel_limit: int) -> Image.Image:
    """Show the chosen frame, by default the middle one, or a grid of frames.

    Frames are found by time, at the average rate. Raises Unreadable without the extra `video`, for a damaged file, a
    frame that is not there, and more than `pixel_limit` pixels in what is shown.
    """
    with _opened(io.BytesIO(data)) as video:
        try:
            stream = _stream(video)
            indices = part.frames(_count(video, stream))
            check_size(stream.codec_context.width, stream.codec_context.height, pixel_limit, len(indices))
            return tiled([_frame(video, stream, index) for index in indices], part.grid)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{_DAMAGED} ({type(error).__name__})") from error


def seconds(path: Path) -> float:
    """Return how long a video lasts, by its header. Raises Unreadable."""
    with _opened(str(path)) as video:
        stream = _stream(video)
        return float(_count(video, stream) / stream.average_rate)


def _opened(file: Any) -> Any:
    try:
        import av
    except ImportError as error:
        raise Unreadable(NEEDS) from error
    try:
        # Plain file or bytes only: a playlist could name other files and hosts.
        return av.open(file, options={"protocol_whitelist": "file,pipe"})
    except (OSError, ValueError, av.FFmpegError) as error:
        raise Unreadable(f"{_DAMAGED} ({type(error).__name__})") from error


def _stream(video: Any) -> Any:
    if not video.streams.video or not video.streams.video[0].average_rate:
        raise Unreadable(f"it holds no moving picture: {_DAMAGED}")
    return video.streams.video[0]


def _count(video: Any, stream: Any) -> int:
    """Return the number of frames, by the header."""
    import av

    if stream.frames:
        return int(stream.frames)
    length = stream.duration * stream.time_base if stream.duration else (video.duration or 0) / av.time_base
    if not (count := round(float(length * stream.average_rate))):
        raise Unreadable(f"its header does not say how long it is: {_DAMAGED}")
    return count


def _frame(video: Any, stream: Any, index: int) -> Image.Image:
    """Decode from the key frame before the frame `index`, counted from 0, up to it."""
    start = stream.start_time or 0
    step = 1 / (stream.average_rate * stream.time_base)
    video.seek(int(start + index * step), stream=stream)
    last = None
    for frame in video.decode(stream):
        last = frame
        # Half a frame of tolerance: time stamps are rounded.
        if frame.pts is None or frame.pts >= start + (index - 0.5) * float(step):
            break
    if last is None:
        raise Unreadable(f"it ends before its frame {index + 1}: {_DAMAGED}")
    shown: Image.Image = last.to_image()
    return shown
