r"""Boxes in an image: [x1, y1, x2, y2], two opposite corners, in whatever unit the model and the gold answer share.

A response is read in the forms of Qwen2.5-VL and Qwen3-VL ({"bbox_2d": [...]}), Qwen2-VL and Qwen-VL
((x1,y1),(x2,y2) between <|box_start|> or <box> tags), InternVL (<box>[[...]]</box>), or as a plain list. Two boxes are
the same if their IoU, the area that they share over the area that they cover together, is at least `spec.iou`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from mm_spine.processors.answers.extraction import announced, last_boxed
from mm_spine.processors.answers.kind import UNPARSED, Kind, read_golds
from mm_spine.types import Answer, AnswerSpec, Verdict

IOU = 0.5
"""Least IoU of two boxes that are the same, where the spec gives none."""

Box = tuple[float, float, float, float]

_TAIL = 20_000  # characters from the end in which a box is looked for
_NUMBER = r"-?[0-9]{1,7}(?:\.[0-9]{1,12})?"
_COMMA = r"\s*[,\s]\s*"
# The corners may be in brackets of their own.
_BOX = re.compile(
    rf"[\[(]\s*(?P<x1>{_NUMBER}){_COMMA}(?P<y1>{_NUMBER})(?:\s*[\])]\s*,?\s*[\[(]\s*|{_COMMA})"
    rf"(?P<x2>{_NUMBER}){_COMMA}(?P<y2>{_NUMBER})\s*[\])]"
)
_JSON = re.compile(r"\"bbox(?:_2d)?\"\s*:\s*(?=\[)")


def read(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of a bare answer or gold: its only box, None for none or several."""
    bare = text.strip()
    found = [*dict.fromkeys(_keys(bare if bare[:1] in ("[", "(", "{", "<") else f"[{bare}]"))]
    return found[0] if len(found) == 1 else None


def find(response: str, spec: AnswerSpec) -> str | None:
    r"""Return the box in \boxed{}, else the only one in JSON, else the announced one, else that of the last line with
    one; None where several different boxes stand there."""
    inside = last_boxed(response)
    if inside is not None:
        return read(inside, spec)
    tail = response[-_TAIL:]
    in_json = {key for at in _JSON.finditer(tail) if (key := next(_keys(tail, at.end()), None))}
    if in_json:
        return in_json.pop() if len(in_json) == 1 else None
    places = [*announced(tail), *reversed(tail.splitlines())]
    keys = next((keys for place in places if (keys := {*_keys(place)})), set())
    return keys.pop() if len(keys) == 1 else None


def _keys(text: str, start: int = 0) -> Iterator[str]:
    """Yield the keys of the boxes in `text`; a box without an area is none."""
    for match in _BOX.finditer(text, start):
        x1, x2 = sorted((float(match["x1"]), float(match["x2"])))
        y1, y2 = sorted((float(match["y1"]), float(match["y2"])))
        if x1 < x2 and y1 < y2:
            yield f"[{', '.join(map(_written, (x1, y1, x2, y2)))}]"


def _written(number: float) -> str:
    """Write a coordinate with at most six decimals."""
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(number, 6) + 0.0:.6f}".rstrip("0").rstrip(".")


def _corners(key: str) -> Box:
    x1, y1, x2, y2 = map(float, key.strip("[]").split(","))
    return x1, y1, x2, y2


def iou(a: str, b: str) -> float:
    """Return the IoU of two boxes, given by their keys, in [0, 1]."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _corners(a), _corners(b)
    shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    covered = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return shared / covered if covered > 0 else float(a == b)


def _threshold(spec: AnswerSpec) -> float:
    return IOU if spec.iou is None else spec.iou


def parse(response: str, spec: AnswerSpec) -> Answer | None:
    """Return the box of a response, None if it has none."""
    key = find(response, spec)
    return None if key is None else Answer(key, key)


def same(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
    """Return whether the IoU is at least the threshold. This is not transitive; `classes` says who votes together."""
    return iou(a.text, b.text) >= _threshold(spec)


def classes(answers: Sequence[Answer | None], spec: AnswerSpec) -> list[str | None]:
    """Return the class of each answer, named after the class's medoid; None for None.

    The box that is the same as the most answers begins a class, which takes these answers; so it goes on with the
    answers that are left. No chain can form: every member is the same as the box that began the class. Of boxes that
    are the same as equally many, the one with the largest sum of IoU begins, then the first by its text. The medoid is
    the member with the largest sum of IoU to all members, then the first by its text.
    """
    votes = Counter(answer.text for answer in answers if answer is not None)
    overlap = {a: {b: iou(a, b) for b in votes} for a in votes}
    least, left, names = _threshold(spec), sorted(votes), dict[str, str]()

    def total(box: str, others: Sequence[str]) -> float:
        return sum(votes[other] * overlap[box][other] for other in others)

    while left:
        near = {box: [other for other in left if overlap[box][other] >= least] for box in left}
        # `left` is sorted, and `max` takes the first of equals.
        begins = max(left, key=lambda box: (sum(votes[other] for other in near[box]), total(box, near[box])))
        members = near[begins]
        names |= dict.fromkeys(members, max(members, key=lambda box: total(box, members)))
        left = [box for box in left if box not in names]
    return [None if answer is None else names[answer.text] for answer in answers]


def grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """Score 1 if the IoU with a gold box is at least the threshold, else 0."""
    boxes = read_golds(golds, spec, read)
    if answer is None:
        return UNPARSED
    best = max(boxes, key=lambda box: iou(answer.text, box))
    value, least = iou(answer.text, best), _threshold(spec)
    correct = value >= least
    relation = "at least" if correct else "below"
    return Verdict(float(correct), correct, f"IoU {value:.2f} of {answer.text} with {best} is {relation} {least:g}.")


KIND = Kind(parse, same, grade, keyed=False, classes=classes)
