"""The key by which a policy finds the prompt that it has encoded for a question."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from mm_spine.types import ImageLike, ImagePart, Question


def question_key(question: Question) -> Hashable:
    """Return a key of the question's content that two different questions never share."""
    # The id is not enough: held-out and adapted questions may share one. The object's address is too much: a copy with
    # the same content would be encoded again, and an address may be reused. `Question` has no usable hash, because PIL
    # images compare by pixels.
    return question.id, question.prompt, tuple(map(_image_key, question.images))


def _image_key(image: ImageLike) -> Hashable:
    """Return a path or the bytes themselves, and the identity of any other image."""
    # Pixels and archive members are never compared: they are too slow to read. Their objects live as long as the
    # policy keeps the question, so an identity is not given to another image meanwhile. A file that is overwritten
    # during a run counts as the same image here; the image cache refuses it when it needs the file again.
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, ImagePart):
        return _image_key(image.file), image.how
    return id(image)
