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
from torch import Tensor

from mm_spine import Method, register_method
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
LABELS_FILE = "labels.json"

JOINTS: Mapping[str, Joint] = {
    "one reading for the questions of an image": Joint(weight=0, power=0),
    "and for alike cells": Joint(power=0),
    "and digits equally frequent": Joint(weight=0),
    "both": Joint(),
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
    policy: Policy, questions: Sequence[Question], readings: Sequence[Reading], seed: int
) -> list[Counter[str]]:
    """Let the model go on from a first sentence that names the reading; count its answers to each question."""
    tokenizer, sampler = policy.tokenizer, _sampler(policy, seed)
    begun = [tuple(tokenizer.encode(f"I see {' '.join(map(str, r))}.", add_special_tokens=False)) for r in readings]

    def script(question: Question, prefix: tuple[int, ...]) -> Any:
        drawn = yield [Request(question, i, prefix) for i in range(COMPLETIONS)]
        return [tokenizer.decode([*prefix, *one.token_ids], skip_special_tokens=True) for one in drawn]

    scripts = [script(*each) for each in zip(questions, begun, strict=True)]
    texts = sampler.run(scripts, step=0, purpose="label-answer")
    parsed = [parse_all(own, question.spec) for own, question in zip(texts, questions, strict=True)]
    return [Counter(a.key for a in own if a is not None and a.key is not None) for own in parsed]


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
    """Return number of rollouts -> rule -> share of the first questions of `labelled` that it labels right."""
    questions = labelled.questions[:QUESTIONS]
    images, cells = images_of(policy, questions)
    rollouts = draw(policy, questions, max(SIZES), seed)
    every = [drawn_of(q, own, len(cells.at[key])) for q, own, key in zip(questions, rollouts, images, strict=True)]
    found = {}
    for n in SIZES:
        drawn = [own.first(n) for own in every]
        answers = {name: [weighted_vote(d, q.id, weigh(d)) for q, d in zip(questions, drawn, strict=True)]
                   for name, weigh in WEIGHTS.items()}  # fmt: skip
        for name, joint in JOINTS.items():
            shares_CV = joint_shares(cells, images, drawn, joint)
            answers[f"{name}, weighed"] = [
                weighted_vote(d, q.id, by_joint_reading(d, cells.at[key], shares_CV))
                for q, d, key in zip(questions, drawn, images, strict=True)
            ]
            counts = answered(policy, questions, joint_readings(cells, images, shares_CV), seed)
            answers[f"{name}, answered"] = [heaviest(own, q.id) for q, own in zip(questions, counts, strict=True)]
        found[str(n)] = {
            name: float(np.mean([a == labelled.key[q.id][0] for a, q in zip(own, questions, strict=True)]))
            for name, own in answers.items()
        }
    return found
