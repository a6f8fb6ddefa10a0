"""fingerprint.json of a run: digests of what it started from, and what differs from another run's.

The answers are in it as one digest for a split. Only the evaluation has them, and nothing that trains reads this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mm_spine.files import sha256
from mm_spine.types import AnswerSpec, ImageLike, ImagePart, Question

FILE = "fingerprint.json"

Digests = Mapping[str, Mapping[str, str]]
"""Question id -> digest of its prompt, its answer's spec and its images."""


def of_questions(questions: Sequence[Question]) -> Digests:
    """Return the digests of each question's content; an image file that cannot be read counts as unreadable."""
    return {
        question.id: {
            "prompt": digest(question.prompt),
            "spec": digest(json.dumps(_spec(question.spec), sort_keys=True)),
            "images": digest(json.dumps([_image_digest(image) for image in question.images])),
        }
        for question in questions
    }


def digest(content: str | bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256: enough to notice any change that nobody designed."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], shared_only: bool = False) -> Iterator[str]:
    """Say what differs in model, questions and answers, the most telling first; nothing if all is the same.

    With `shared_only`, questions and splits that only one of the two has do not count.
    """
    if old["model"] != new["model"]:
        yield "the model's weights changed"
    for split in dict.fromkeys([*old["questions"], *new["questions"]]):
        before, after = old["questions"].get(split), new["questions"].get(split)
        if before is None or after is None:
            if not shared_only:
                yield f"the split {split!r} was {'added' if before is None else 'left out'}"
            continue
        yield from _question_differences(before, after, shared_only)
        if before.keys() == after.keys() and old["answers"].get(split) != new["answers"].get(split):
            yield f"a gold answer of the split {split!r} changed"


def all_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Say what differs in anything but configuration and code."""
    yield from differences(old, new)
    yield from plugin_differences(old, new)
    yield from file_differences(old, new)


def plugin_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Say which plugins changed, were left out or were added; a run of an earlier version had none."""
    before, after = old.get("plugins", {}), new.get("plugins", {})
    for name in dict.fromkeys([*before, *after]):
        if name not in after:
            yield f"the plugin {name} was left out (--plugin)"
        elif name not in before:
            yield f"the plugin {name} was added"
        elif before[name] != after[name]:
            yield f"the plugin {name} changed"


def of_folders(folders: Sequence[Path]) -> dict[str, str]:
    """Return file -> digest of the files directly in `folders`, which a method reads."""
    files = (path for folder in folders for path in sorted(folder.iterdir()) if path.is_file())
    return {str(path): sha256(path)[:16] for path in files}


def file_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Say which of the files that the method reads are others; most methods read none."""
    before, after = old.get("files", {}), new.get("files", {})
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield f"{name}, which the method reads, changed"


def _spec(spec: AnswerSpec) -> dict[str, Any]:
    """Return the fields of a spec, `iou` only where it is set, so that older fingerprints stay equal."""
    return {name: value for name, value in asdict(spec).items() if name != "iou" or value is not None}


def code_words(found: Mapping[str, Any]) -> str:
    """Return the version and the commit of the code that wrote the fingerprint `found`, in words."""
    code = found["code"]
    return f"mm-spine {code.get('version')}, commit {(code.get('commit') or 'unknown')[:12]}"


def read(run: Path) -> dict[str, Any] | None:
    """Return the fingerprint in a run's folder, None where an older version wrote none.

    Raises ValueError naming the file when it is damaged.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        if {"model", "questions", "answers", "config", "code"} <= dict(found).keys():
            return dict(found)
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path}: damaged; restore the file from a copy, or start again in a new folder")


def _question_differences(before: Digests, after: Digests, shared_only: bool) -> Iterator[str]:
    for question_id, digests in before.items():
        if question_id in after:
            for part, found in digests.items():
                if after[question_id].get(part) != found:
                    yield f"{part} of question {question_id!r} changed"
    if not shared_only:
        for question_id in before:
            if question_id not in after:
                yield f"question {question_id!r} was left out"
        for question_id in after:
            if question_id not in before:
                yield f"question {question_id!r} was added"


def _image_digest(image: ImageLike) -> str:
    if isinstance(image, Image):
        return digest(f"{image.mode} {image.size} ".encode() + image.tobytes())
    if isinstance(image, bytes):
        return digest(image)
    if isinstance(image, ImagePart):
        return digest(f"{image.how} {_image_digest(image.file)}".encode())
    try:
        return digest(Path(image).read_bytes() if isinstance(image, str | Path) else image.read_bytes())
    except (OSError, KeyError, ValueError):
        return "unreadable"
