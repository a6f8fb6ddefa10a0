"""Search for ways past the starting vote on `digits`: rules of voting, then training on what they say.

    python scripts/study/past_vote.py [--only GLOB] [--report-only] [--output DIR] [--results DIR]

Three stages, each resumable: pseudo-labels of every rule on `tune`, cells on `tune` that train on the promising ones,
and the one table on `adapt` and `held_out` for what was chosen on `tune` (`CHOSEN`). A cell is finished when its
summary.json exists. Cells of `main` are those of `scripts/study_digits.sh` and are taken over where they are finished.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cells import BASE, COMMON, Cell, digits_config
from joint_votes import Cells, Drawn, Joint, Reading, heaviest, joint_readings, joint_shares, reading_of
from pydantic import Field
from run_cells import Task, perform
from torch import Tensor

from mm_spine import Method, register_method
from mm_spine.benchmarks import digits
from mm_spine.config import MethodConfig, NonNegative, RunConfig
from mm_spine.files import read_json, write_json
from mm_spine.methods.method import NO_ENTROPIES, TTRL_KL
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import parse_all
from mm_spine.sampling import Request
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import Group, Question, Reward, Rollout

log = logging.getLogger("past_vote")

QUESTIONS = 256
"""Questions 0-255 of `tune` are built like those of `adapt`, which has no others."""
MAX_NEW_TOKENS, COMPLETIONS = 48, 16


# --- The method: rewards from labels that were voted on before ------------------------------------------------------


class PseudoConfig(MethodConfig):
    """Pseudo-labels that were made before."""

    labels: Path | None = Field(default=None, description="a folder with labels.json, as this study writes it")
    reading_weight: NonNegative = Field(default=0.0, description="the reward of naming the label's reading")


def pseudo_reward(options: PseudoConfig) -> Reward:
    """Reward a response 1 for the label's answer, plus `reading_weight` for the label's reading."""
    labels = read_json(options.labels / "labels.json")

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


def answered(policy: Policy, questions: Sequence[Question], readings: Sequence[Reading], seed: int) -> list[Counter[str]]:
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
    drawn = [[*map(list, ())] for _ in questions]
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
        q.id: {"answer": (winner := heaviest(own, q.id)), "share": own[winner or ""] / max(1, own.total()), "reading": r}
        for q, own, r in zip(questions, counts, readings, strict=True)
    }


# --- The cells ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A way to train: a row of the table of methods with options, or `pseudo` with the labels of a rule."""

    method: str
    overrides: tuple[str, ...] = ()
    rule: str | None = None


RULES: Mapping[str, Rule] = {
    "vote-64": Rule(64),
    "joint-16": Rule(16, Joint()),
    "joint-64": Rule(64, Joint()),
    "joint-unbalanced-64": Rule(64, Joint(power=0.0)),
    "revote-64": Rule(64, after="ttrl"),
    "rejoint-16": Rule(16, Joint(), after="joint"),
}
ARMS: Mapping[str, Arm] = {
    "ttrl": Arm("ttrl"),
    "spine": Arm("spine"),
    "votes-64": Arm("ttrl", ("sampling.votes=64",)),
    "share": Arm("ttrv"),
    "fixed-64": Arm("pseudo", rule="vote-64"),
    "joint": Arm("pseudo", rule="joint-16"),
    "joint-reading": Arm("pseudo", ("method.reading_weight=1",), "joint-16"),
    "revote": Arm("pseudo", rule="revote-64"),
    "rejoint": Arm("pseudo", rule="rejoint-16"),
}
LONG = 36


@dataclass(frozen=True)
class PastCell(Cell):
    """A cell of this study: `label` names its arm, `split` the questions."""

    split: str = "tune"

    @property
    def labels(self) -> str | None:
        """The folder of the pseudo-labels that it trains on."""
        rule = None if self.label == BASE else ARMS[self.label].rule
        return None if rule is None else labels_name(self.split, rule, self.seed)

    def config(self, output: Path) -> RunConfig:
        arm = Arm(BASE) if self.label == BASE else ARMS[self.label]
        shared = self.before is not None and (output / self.before / "summary.json").is_file()
        before = [f"evaluation.before={output / str(self.before)}"] if shared else []
        labels = [] if self.labels is None else [f"method.labels={output / self.labels}"]
        return digits_config([*COMMON, *arm.overrides, *labels, *self.overrides, *before], arm.method, self.seed)


def labels_name(split: str, rule: str, seed: int) -> str:
    return f"labels/{split}/{rule}/seed_{seed}"


def tune_cell(label: str, seed: int, steps: int | None = None) -> PastCell:
    group = "tune" if steps is None else f"tune-{steps}"
    overrides = ("split=tune", f"limit={QUESTIONS}", *(() if steps is None else (f"optim.steps={steps}",)))
    return PastCell(group, label, seed, overrides, None if label == BASE else f"tune/{BASE}/seed_{seed}")
