"""The forecast: what one round of votes says, without labels, about whether adapting is worth trying.

Half of a question's samples stand in for the missing gold answer. Their vote grades two rivals: the vote of the other
half, and the greedy answer. Where the other half agrees more often than the greedy answer does, one greedy answer has
something to gain from adapting to the vote. Where both agree equally often, the vote is no better a guide than the
answer that it would replace. A vote that is wrong in the same way in both halves passes this test, so that signs of
such votes are looked for as well. The method and its limits are our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mm_spine.evaluation import Item
from mm_spine.intervals import Interval, bootstrap_ci
from mm_spine.processors.answers import parse, same
from mm_spine.types import Answer, AnswerSpec, Question
from mm_spine.voting import confident, rank

Verdict = Literal["adapt", "vote", "keep", "neither"]

FEWEST_SAMPLES = 4
"""Below this number of samples, half of them are no vote."""

SPLITS = 8
"""Random ways to halve the samples, the same for every question."""

WORTH = 0.05
"""A smaller gain in agreement, as a share of the questions, is not worth adapting for."""

SURE = 0.95
"""A majority is narrow unless its answer is the most frequent one with more than this posterior probability."""

UNSTABLE = 0.5
"""Halves that agree on a smaller share of the questions leave the vote without support."""

DOMINANT = 0.5
"""One answer that wins on a larger share of the questions is a sign of a habit, where more than two answers won."""

DOMINANT_OF_TWO = 0.95
"""The same share where the questions have at most two answers, such as yes and no."""

MOSTLY_UNPARSED = 0.5
"""Above this share of samples without an answer, too few of them vote."""


@dataclass(frozen=True)
class Forecast:
    """What the samples of `n` questions say without labels. Shares are of the questions unless said otherwise.

    Attributes:
        n, samples: questions, and samples of each.
        vote_share: mean share of the samples that gave the vote's answer.
        unparsed: share of all samples without an answer.
        narrow: questions without a sure majority (`SURE`).
        differs: questions on which the greedy answer is not the vote's.
        differs_narrow: share of these whose majority is narrow.
        halves_agree, greedy_agrees: how often the vote of one half of the samples is that of the other half, and how
            often it is the greedy answer.
        gain: halves_agree - greedy_agrees, paired by question, with a 95 % interval over questions.
        form_decides: how much less often the votes of the shorter and the longer half of the responses agree than
            those of random halves.
        top_answer, top_share: the answer that wins most often, and how often.
        tokens: mean tokens of a response.
        verdict: `adapt`, `vote` (use the vote instead), `keep` (the greedy answer is the vote's already) or `neither`
            (trust neither).
        signs: why the majority may be wrong, in words.
    """

    n: int
    samples: int
    vote_share: float
    unparsed: float
    narrow: float
    differs: float
    differs_narrow: float | None
    halves_agree: float
    greedy_agrees: float
    gain: Interval
    form_decides: float
    top_answer: str | None
    top_share: float
    tokens: float
    verdict: Verdict
    signs: tuple[str, ...]


class _Ballot(NamedTuple):
    """One question: the class that won, its share of the samples, and who agrees with it or with halves of them."""

    winner: str | None
    share: float
    narrow: bool
    differs: bool
    halves_agree: float
    greedy_agrees: float
    forms_agree: bool


def forecast(questions: Iterable[Question], items: Sequence[Item]) -> Forecast | None:
    """Return the forecast from an evaluation of the starting model; verdicts in the items are not read.

    None where there are no items, or fewer than `FEWEST_SAMPLES` samples of each.
    """
    if not items or len(items[0].classes) < FEWEST_SAMPLES:
        return None
    specs = {question.id: question.spec for question in questions}
    samples = len(items[0].classes)
    halves = _halves(samples)
    ballots = [_ballot(item, specs[item.id], halves) for item in items]
    differing = [ballot for ballot in ballots if ballot.differs]
    gains_Q = np.array([ballot.halves_agree - ballot.greedy_agrees for ballot in ballots])
    winners = Counter(ballot.winner for ballot in ballots if ballot.winner is not None)
    top_answer, top_count = winners.most_common(1)[0] if winners else (None, 0)
    halves_agree = float(np.mean([ballot.halves_agree for ballot in ballots]))
    unparsed = float(np.mean([flag for item in items for flag in item.unparsed]))
    top_share = top_count / len(items)
    gain = Interval(float(gains_Q.mean()), *bootstrap_ci(gains_Q))
    differs = len(differing) / len(items)
    signs = tuple(_signs(unparsed, halves_agree, top_answer, top_share, len(winners)))
    return Forecast(
        n=len(items),
        samples=samples,
        vote_share=float(np.mean([ballot.share for ballot in ballots])),
        unparsed=unparsed,
        narrow=float(np.mean([ballot.narrow for ballot in ballots])),
        differs=differs,
        differs_narrow=float(np.mean([ballot.narrow for ballot in differing])) if differing else None,
        halves_agree=halves_agree,
        greedy_agrees=float(np.mean([ballot.greedy_agrees for ballot in ballots])),
        gain=gain,
        form_decides=halves_agree - float(np.mean([ballot.forms_agree for ballot in ballots])),
        top_answer=top_answer,
        top_share=top_share,
        tokens=float(np.mean([length for item in items for length in item.lengths])),
        verdict=_verdict(gain, differs, bool(signs)),
        signs=signs,
    )


def _halves(samples: int) -> list[tuple[list[int], list[int]]]:
    """Return `SPLITS` random ways to cut the places of the samples into two halves of equal size."""
    rng, half = np.random.default_rng(0), samples // 2
    orders = [rng.permutation(samples).tolist() for _ in range(SPLITS)]
    return [(order[:half], order[half : 2 * half]) for order in orders]


def _ballot(item: Item, spec: AnswerSpec, halves: Sequence[tuple[list[int], list[int]]]) -> _Ballot:
    greedy = _class_of(parse(item.greedy_text, spec), item, spec)
    winner = _winner(item.classes, item.id)
    pairs = [tuple(_winner([item.classes[place] for place in half], item.id) for half in halved) for halved in halves]
    judges = [judge for pair in pairs for judge in pair]
    by_length = sorted(range(len(item.lengths)), key=lambda place: (item.lengths[place], place))
    half = len(by_length) // 2
    short, long = (
        _winner([item.classes[place] for place in places], item.id) for places in (by_length[:half], by_length[-half:])
    )
    return _Ballot(
        winner=winner,
        share=_share(item.classes, winner),
        narrow=not confident(_counts(item.classes), SURE),
        differs=greedy != winner,
        halves_agree=float(np.mean([a is not None and a == b for a, b in pairs])),
        greedy_agrees=float(np.mean([judge is not None and judge == greedy for judge in judges])),
        forms_agree=short is not None and short == long,
    )


def _counts(classes: Iterable[str | None]) -> Mapping[str, int]:
    return Counter(name for name in classes if name is not None)


def _winner(classes: Iterable[str | None], question_id: str) -> str | None:
    return next((name for name, _ in rank(_counts(classes), question_id)), None)


def _share(classes: Sequence[str | None], name: str | None) -> float:
    return 0.0 if name is None else sum(each == name for each in classes) / len(classes)


def _class_of(answer: Answer | None, item: Item, spec: AnswerSpec) -> str | None:
    """Return the class of the samples that the greedy answer belongs to; a name of its own where it is in none."""
    if answer is None:
        return None
    pairs = zip(item.answers, item.classes, strict=True)
    members = [(sample, name) for sample, name in pairs if sample is not None and name is not None]
    for sample, name in members:
        if sample.text == answer.text or (sample.key is not None and sample.key == answer.key):
            return name
    for sample, name in dict(members).items():
        if same(answer, sample, spec):
            return name
    return f"greedy: {answer.text}"


def _signs(
    unparsed: float, halves_agree: float, top_answer: str | None, top_share: float, distinct: int
) -> Iterable[str]:
    """Say what speaks against trusting the majority."""
    if unparsed > MOSTLY_UNPARSED:
        yield f"{unparsed:.0%} of the responses have no answer that could be read"
    if halves_agree < UNSTABLE:
        yield f"two halves of the samples elect the same answer on only {halves_agree:.0%} of the questions"
    if top_share > (DOMINANT if distinct > 2 else DOMINANT_OF_TWO) and distinct > 1:
        yield f"one answer, {top_answer!r}, wins on {top_share:.0%} of the questions"


def _verdict(gain: Interval, differs: float, signs: bool) -> Verdict:
    if signs:
        return "neither"
    if gain.value >= WORTH and gain.low is not None and gain.low > 0:
        return "adapt"
    return "vote" if differs > WORTH else "keep"


def sentences(found: Forecast) -> list[str]:
    """Say the forecast in words, the verdict last."""
    said = [
        f"Without labels: the vote's answer has {found.vote_share:.0%} of the {found.samples} samples on average, and "
        f"the majority is narrow on {found.narrow:.0%} of the {found.n:,} questions. The greedy answer is another than "
        f"the vote's on {found.differs:.0%} of them{_of_these(found)}.",
        f"Half of the samples elect the answer of the other half on {found.halves_agree:.0%} of the questions, the "
        f"greedy answer is that of a half on {found.greedy_agrees:.0%}: {_points(found.gain)} by which one greedy "
        "answer could gain from adapting, if majorities are right.",
    ]
    if found.form_decides > WORTH:
        said.append(
            f"Shorter and longer responses to a question elect the same answer on {found.form_decides * 100:.0f} "
            "points fewer questions than random halves: the form of a response decides part of the vote."
        )
    return [*said, _verdict_sentence(found)]


def _of_these(found: Forecast) -> str:
    return "" if found.differs_narrow is None else f", {found.differs_narrow:.0%} of these by a narrow majority"


def _points(gain: Interval) -> str:
    assert gain.low is not None and gain.high is not None
    low, high = sorted((gain.low, gain.high))
    return f"{gain.value * 100:+.0f} [{low * 100:+.0f}, {high * 100:+.0f}] points"


def _verdict_sentence(found: Forecast) -> str:
    cost = f"{found.samples} responses of {found.tokens:.0f} tokens for each question"
    if found.verdict == "adapt":
        return "Forecast: adapt. The vote is steadier than the greedy answer."
    if found.verdict == "vote":
        return (
            f"Forecast: use the vote instead ({cost}). It disagrees with the greedy answer, but is not steadier than "
            "it: adapting may lose what voting gains."
        )
    if found.verdict == "keep":
        return (
            "Forecast: keep the model. Its greedy answers are the vote's already, so that adapting has little to add."
        )
    return (
        "Forecast: trust neither the vote nor an adaptation to it until labels for some questions say which is better: "
        f"{'; '.join(found.signs)}."
    )


def saved(found: Forecast | None) -> dict[str, Any] | None:
    """Return the entry `forecast` of summary.json, None without a forecast."""
    if found is None:
        return None
    fields = asdict(found) | {
        "gain": found.gain.value,
        "gain_ci95": [found.gain.low, found.gain.high],
        "signs": list(found.signs),
    }
    return {**fields, "sentences": sentences(found)}
