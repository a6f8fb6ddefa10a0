"""Make pseudo-labels for `digits` without labels, and the row of a method that trains on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joint_votes import (
    WEIGHTS,
    Cells,
    Drawn,
    Joint,
    Reading,
    by_joint_reading,
    heaviest,
    joint_readings,
    joint_shares,
    reading_of,
    weighted_vote,
)
from pydantic import Field
from sklearn.datasets import load_digits
from torch import Tensor

from mm_spine import Method, register_method
from mm_spine.benchmarks import digits
from mm_spine.config import MethodConfig, NonNegative
from mm_spine.files import read_json
from mm_spine.methods.method import NO_ENTROPIES, TTRL_KL
from mm_spine.methods.table import METHODS, configure
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import parse_all
from mm_spine.sampling import Request
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import Group, LabelledSet, Question, Reward, Rollout

QUESTIONS = 256
"""Questions 0-255 of `tune` are built like those of `adapt`, which has no others."""
MAX_NEW_TOKENS, COMPLETIONS = 48, 16
SIZES = (16, 64)
"""Rollouts a question on which the rules are compared."""
SKEWED = (0, 1)
"""Digits that are left out to see what the balance is worth where it does not hold."""
LABELS_FILE = "labels.json"

JOINTS: Mapping[str, Joint] = {
    "one reading an image": Joint(weight=0, power=0),
    "one reading an image, alike cells": Joint(power=0),
    "one reading an image, equal frequency": Joint(weight=0),
    "one reading an image, alike cells, equal frequency": Joint(),
}
"""Ways to join readings. Each is measured twice: it weighs the rollouts there are, or the model answers after it."""


# --- The method: rewards from labels that were voted on before ------------------------------------------------------


class PseudoConfig(MethodConfig):
    """Pseudo-labels that were made before."""

    labels: Path | None = Field(default=None, description="a folder with labels.json, as this study writes it")
    reading_weight: NonNegative = Field(default=0.0, description="the reward of naming the label's reading")


def pseudo_reward(options: PseudoConfig) -> Reward:
    """Reward a response 1 for the label's answer, plus `reading_weight` for the label's reading."""
    labels = read_json(options.labels / LABELS_FILE)

    def reward(group: Group) -> Tensor:
        label = labels[group.question.id]
        answers = [answer is not None and answer.key == label["answer"] for answer in group.parsed]
        wanted = tuple(label["reading"] or ())
        read = [bool(wanted) and reading_of(r.text, len(wanted)) == wanted for r in group.rollouts]
        return torch.tensor(answers, dtype=torch.float) + options.reading_weight * torch.tensor(read)

    return reward


PSEUDO = Method(
    "rewards from a file of pseudo-labels", "this study", "r_i = 1[answer_i = y*] + reading_weight 1[reading_i = z*]",
    reward=pseudo_reward, section=PseudoConfig, options=TTRL_KL, **NO_ENTROPIES,
    reads=lambda options: [options.labels],
)  # fmt: skip


def register() -> None:
    """Add the row to the table of methods, once."""
    if "pseudo" not in METHODS:
        register_method("pseudo", PSEUDO)


# --- Pseudo-labels --------------------------------------------------------------------------------------------------


Known = dict[tuple[str, Reading], Counter[str]]
"""(question id, reading) -> how often the model gave each answer after it."""


class Rule(NamedTuple):
    """How labels are made: `votes` rollouts a question; with `joint` one reading for all questions of an image.

    `after` is the arm whose adapted model draws as many rollouts more, and answers.
    """

    votes: int
    joint: Joint | None = None
    after: str | None = None


def draw(policy: Policy, questions: Sequence[Question], n: int, seed: int) -> list[list[Rollout]]:
    """Draw n rollouts of each question, apart from those that train."""
    return _sampler(policy, seed).sample(questions, n, step=0, purpose="label")


def _sampler(policy: Policy, seed: int) -> Any:
    sampling = {"votes": 16, "train_rollouts": 16, "max_new_tokens": MAX_NEW_TOKENS}
    return make_sampler(policy, configure({"seed": seed, "sampling": sampling}))


def drawn_of(question: Question, rollouts: Sequence[Rollout], cells: int) -> Drawn:
    """Read answers and readings from rollouts."""
    answers = parse_all([rollout.text for rollout in rollouts], question.spec)
    entropies = [r.entropy if r.entropy is not None else np.full(len(r.logp), np.nan) for r in rollouts]
    return Drawn(
        [None if answer is None else answer.key for answer in answers],
        [reading_of(rollout.text, cells) for rollout in rollouts],
        [float(r.logp.sum()) for r in rollouts],
        [float(r.logp.mean()) for r in rollouts],
        [float(e.mean()) for e in entropies],
    )


def images_of(policy: Policy, questions: Sequence[Question]) -> tuple[list[str], Cells]:
    """Return the image of each question, by the hash of its patches, and the cells of all images."""
    images, at, features = [], dict[str, range](), list[np.ndarray]()
    for question in questions:
        prompt = policy.prompt(question)
        (key,) = prompt.image_keys
        images.append(key)
        if key not in at:
            start = sum(map(len, features))
            features.append(prompt.features_ID.detach().cpu().double().numpy())
            at[key] = range(start, start + len(features[-1]))
    return images, Cells(at, np.concatenate(features))


def answered(
    policy: Policy, questions: Sequence[Question], readings: Sequence[Reading], seed: int, known: Known | None = None
) -> list[Counter[str]]:
    """Let the model go on from a first sentence that names the reading; count its answers to each question.

    What is `known` is not drawn again, and what is drawn is added to it.
    """
    known = {} if known is None else known
    todo = [pair for pair in zip(questions, readings, strict=True) if (pair[0].id, pair[1]) not in known]
    tokenizer, sampler = policy.tokenizer, _sampler(policy, seed)

    def script(question: Question, reading: Reading) -> Any:
        begun = tuple(tokenizer.encode(f"I see {' '.join(map(str, reading))}.", add_special_tokens=False))
        drawn = yield [Request(question, i, begun) for i in range(COMPLETIONS)]
        return [tokenizer.decode([*begun, *one.token_ids], skip_special_tokens=True) for one in drawn]

    texts = sampler.run([script(*pair) for pair in todo], step=0, purpose="label-answer")
    for (question, reading), own in zip(todo, texts, strict=True):
        answers = parse_all(own, question.spec)
        known[question.id, reading] = Counter(a.key for a in answers if a is not None and a.key is not None)
    return [known[question.id, reading] for question, reading in zip(questions, readings, strict=True)]


def make_labels(
    rule: Rule, policies: Sequence[Policy], questions: Sequence[Question], seed: int
) -> dict[str, dict[str, Any]]:
    """Return question id -> answer, its share, and the reading (None without a joint one). No label is read."""
    images, cells = images_of(policies[0], questions)
    drawn: list[list[Rollout]] = [[] for _ in questions]
    for policy in policies:
        for own, new in zip(drawn, draw(policy, questions, rule.votes, seed), strict=True):
            own.extend(new)
    read = [drawn_of(q, own, len(cells.at[key])) for q, own, key in zip(questions, drawn, images, strict=True)]
    readings: Sequence[Reading | None] = [None] * len(questions)
    counts = [Counter(answer for answer in own.answers if answer is not None) for own in read]
    if rule.joint is not None:
        joint = joint_readings(cells, images, joint_shares(cells, images, read, rule.joint))
        readings, counts = joint, answered(policies[-1], questions, joint, seed)
    return {
        q.id: {
            "answer": (winner := heaviest(own, q.id)),
            "share": own[winner or ""] / max(1, own.total()),
            "reading": r,
        }
        for q, own, r in zip(questions, counts, readings, strict=True)
    }


def compare_rules(policy: Policy, labelled: LabelledSet, seed: int) -> dict[str, dict[str, float]]:
    """Return what was drawn -> rule -> share of the first questions of `labelled` that it labels right.

    The last entry leaves out all images that show a 0 or a 1, so that digits are not equally frequent.
    """
    questions = labelled.questions[:QUESTIONS]
    rollouts = draw(policy, questions, max(SIZES), seed)
    drawn = {
        q.id: drawn_of(q, own, len(policy.prompt(q).features_ID)) for q, own in zip(questions, rollouts, strict=True)
    }
    skew = showing(SKEWED)
    skewed = [question for question in questions if question.id not in skew]
    parts = {f"{n} rollouts": (questions, n) for n in SIZES} | {f"{SIZES[0]}, no 0 or 1": (skewed, SIZES[0])}
    found, known = {}, Known()
    for name, (part, n) in parts.items():
        answers = answers_of(policy, part, [drawn[question.id].first(n) for question in part], seed, known)
        right = {
            rule: [answer == labelled.key[question.id][0] for answer, question in zip(own, part, strict=True)]
            for rule, own in answers.items()
        }
        found[name] = {rule: float(np.mean(own)) for rule, own in right.items()}
    return found


def showing(values: Sequence[int]) -> set[str]:
    """Return the ids of the questions of `tune` whose image shows one of the digits. It reads the labels."""
    targets = load_digits().target
    planned = digits.plan("tune")
    return {question.id for question in planned if {int(targets[i]) for i in question.digits} & set(values)}


def answers_of(
    policy: Policy, questions: Sequence[Question], drawn: Sequence[Drawn], seed: int, known: Known
) -> dict[str, list[str | None]]:
    """Return rule -> its answer to each question."""
    images, cells = images_of(policy, questions)
    found = {
        name: [weighted_vote(own, question.id, weigh(own)) for question, own in zip(questions, drawn, strict=True)]
        for name, weigh in WEIGHTS.items()
    }
    for name, joint in JOINTS.items():
        shares_CV = joint_shares(cells, images, drawn, joint)
        found[f"{name}: weighed"] = [
            weighted_vote(own, question.id, by_joint_reading(own, cells.at[image], shares_CV))
            for question, own, image in zip(questions, drawn, images, strict=True)
        ]
        counts = answered(policy, questions, joint_readings(cells, images, shares_CV), seed, known)
        found[f"{name}: answered"] = [heaviest(own, q.id) for own, q in zip(counts, questions, strict=True)]
    return found
