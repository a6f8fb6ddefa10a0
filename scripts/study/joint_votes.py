"""Rules that turn rollouts on `digits` into pseudo-labels: weighted votes, and one reading for questions of an image.

Pure functions on small arrays. Shape suffixes: C cells (an image token, which is one digit of an image), D features,
V values that a cell may be read as. A reading is what a response says it sees, before it works: one value a cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mm_spine.voting import tie_order

VALUES = 10
"""A cell shows a digit, 0 to 9. That is knowledge of the task."""

Reading = tuple[int, ...]


class Drawn(NamedTuple):
    """The N rollouts of one question: answers (keys), readings, and the log-probs and entropies of their tokens.

    `logp` is the sum, `mean_logp` and `entropy` are means over the tokens; nats.
    """

    answers: Sequence[str | None]
    readings: Sequence[Reading | None]
    logp: Sequence[float]
    mean_logp: Sequence[float]
    entropy: Sequence[float]

    def first(self, n: int) -> Drawn:
        return Drawn(*(values[:n] for values in self))


def reading_of(text: str, cells: int) -> Reading | None:
    """Return the digits that a response names in its first sentence; None if they are not one for each cell.

    The first sentence ends at the first full stop. An answer in a box is none of it, so that a response that answers
    at once has no reading.
    """
    before, box, _ = text.partition("\\boxed")
    named = re.findall(r"\d+", before.partition(".")[0]) if box else []
    digits = tuple(map(int, named))
    return digits if len(digits) == cells and all(0 <= digit < VALUES for digit in digits) else None


def heaviest(weights: Mapping[str, float], question_id: str) -> str | None:
    """Return the answer with the largest weight, ties as in every vote; None without one."""
    return min(weights, key=lambda a: (-round(weights[a], 9), tie_order(question_id, a)), default=None)


def weighted_vote(drawn: Drawn, question_id: str, weights_N: Sequence[float]) -> str | None:
    """Return the answer with the largest sum of weights. Responses without an answer do not vote."""
    sums = Counter[str]()
    for answer, weight in zip(drawn.answers, weights_N, strict=True):
        if answer is not None:
            sums[answer] += weight
    return heaviest(sums, question_id)


# What a response weighs. A response that no rule weighs has a little, so that an answer is found in any case.
LITTLE = 1e-6


def by_habit(drawn: Drawn) -> list[float]:
    """Weigh responses that name what they read 1."""
    return [LITTLE + (reading is not None) for reading in drawn.readings]


def by_sequence(drawn: Drawn) -> list[float]:
    """Weigh each response by its probability."""
    return np.exp(drawn.logp).tolist()


def by_mean_logp(drawn: Drawn) -> list[float]:
    """Weigh each response by the geometric mean of its tokens' probabilities, cubed."""
    return np.exp(3 * np.asarray(drawn.mean_logp)).tolist()


def by_certainty(drawn: Drawn) -> list[float]:
    """Weigh each response by exp(-3 mean token entropy)."""
    return np.exp(-3 * np.asarray(drawn.entropy)).tolist()


def by_own_reading(drawn: Drawn) -> list[float]:
    """Weigh responses by how often their reading is named for this question."""
    counts = Counter(reading for reading in drawn.readings if reading is not None)
    return [LITTLE + (0 if reading is None else counts[reading]) for reading in drawn.readings]


WEIGHTS: Mapping[str, Callable[[Drawn], list[float]]] = {
    "the vote": lambda drawn: [1.0] * len(drawn.answers),
    "only responses that name their reading": by_habit,
    "weighed by sequence probability": by_sequence,
    "weighed by mean log-prob": by_mean_logp,
    "weighed by certainty (mean entropy)": by_certainty,
    "weighed by the share of the reading": by_own_reading,
}
"""Rules that see one question at a time."""


# One reading for all questions of an image.


class Cells(NamedTuple):
    """The cells of all images: `at` maps an image to its cells, in order; `features_CD` are the frozen tower's."""

    at: Mapping[Hashable, Sequence[int]]
    features_CD: np.ndarray


def pooled_shares(cells: Cells, images: Sequence[Hashable], drawn: Sequence[Drawn]) -> np.ndarray:
    """Return how often each cell is read as each value in the responses to all questions about its image, (C, V).

    Rows sum to 1; a cell of which nothing was read is uniform.
    """
    counts_CV = np.zeros((len(cells.features_CD), VALUES))
    for image, own in zip(images, drawn, strict=True):
        for reading in own.readings:
            if reading is not None:
                counts_CV[list(cells.at[image]), list(reading)] += 1
    counts_CV[counts_CV.sum(1) == 0] = 1
    return counts_CV / counts_CV.sum(1, keepdims=True)


def neighbours(features_CD: np.ndarray, k: int) -> np.ndarray:
    """Return the normalised graph of the k most alike cells, (C, C), symmetric: S = D^-1/2 W D^-1/2.

    W holds the cosines of centred features where one cell is among the k most alike of the other, else 0.
    """
    centred = features_CD - features_CD.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    near = np.zeros_like(alike)
    rows = np.arange(len(alike))[:, None]
    columns = np.argsort(-alike, axis=1, kind="stable")[:, :k]
    near[rows, columns] = np.maximum(alike[rows, columns], 0)
    near = np.maximum(near, near.T)
    degree = near.sum(1)
    return near / np.sqrt(np.outer(degree, degree) + 1e-12)


def smoothed(shares_CV: np.ndarray, graph_CC: np.ndarray, weight: float, rounds: int = 20) -> np.ndarray:
    """Spread shares over the graph: p <- (1 - weight) p_0 + weight S p; rows sum to 1 (Zhou et al. 2004)."""
    spread = shares_CV
    for _ in range(rounds):
        spread = (1 - weight) * shares_CV + weight * graph_CC @ spread
    return spread / spread.sum(1, keepdims=True)


def balanced(shares_CV: np.ndarray, power: float, rounds: int = 100) -> np.ndarray:
    """Scale shares^power so that all values are read equally often over the cells, by Sinkhorn's iterations.

    That all digits are equally frequent is an assumption: the labels of no question are read for it.
    """
    scaled = (shares_CV + 1e-3) ** power
    for _ in range(rounds):
        scaled = scaled / scaled.sum(0) * (len(scaled) / scaled.shape[1])
        scaled = scaled / scaled.sum(1, keepdims=True)
    return scaled


class Joint(NamedTuple):
    """How readings are joined: `k` neighbours of a cell with a `weight` (0: none), `power` of the balance (0: none)."""

    k: int = 4
    weight: float = 0.7
    power: float = 2.0


def joint_shares(cells: Cells, images: Sequence[Hashable], drawn: Sequence[Drawn], joint: Joint) -> np.ndarray:
    """Return what each cell is read as, jointly over all questions of its image and all images, (C, V)."""
    shares_CV = pooled_shares(cells, images, drawn)
    if joint.weight:
        shares_CV = smoothed(shares_CV, neighbours(cells.features_CD, joint.k), joint.weight)
    return balanced(shares_CV, joint.power) if joint.power else shares_CV


def joint_readings(cells: Cells, images: Sequence[Hashable], shares_CV: np.ndarray) -> list[Reading]:
    """Return the reading of each question's image: the likeliest value of each of its cells."""
    return [tuple(int(value) for value in shares_CV[list(cells.at[image])].argmax(1)) for image in images]


def by_joint_reading(drawn: Drawn, at: Sequence[int], shares_CV: np.ndarray) -> list[float]:
    """Weigh each response by the joint share of its reading, squared: the product over its cells."""
    return [
        1e-9 + (0.0 if reading is None else float(np.prod(shares_CV[list(at), list(reading)])) ** 2)
        for reading in drawn.readings
    ]
