r"""What votes that stop early spare on `digits`, and what they are worth: `decided`, and `confident` at three levels.

    python scripts/study/votes.py [--seeds 5 --questions 256 --split adapt --votes 32 --least 4 --rounds 1 2 4]
        [--json]

The starting model draws all votes once a seed, and each rule takes its rounds from them: the rollouts of a vote that
stops are the first of the full one. `least` is how many rollouts a question has in any case, those that are trained
on. Seeds are seeds of the draws. The labels are used after the sampling, by the grader of every evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from draws import MAX_NEW_TOKENS, Saved, command_line, each_seed, markdown_table, over_questions, percent, plain

from mm_spine.config import VotesConfig
from mm_spine.intervals import Interval, over_seeds
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.processors.answers import grade, parse
from mm_spine.sampling.registry import make_sampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.types import Group, LabelledSet
from mm_spine.voting import representative

LEVELS = (0.9, 0.95, 0.99)
FULL = "never"


def rules(most: int, rounds: Sequence[int]) -> dict[str, VotesConfig]:
    """Return the full vote and the ways to stop it, by name."""
    sure = [VotesConfig(max=most, stop="confident", level=level) for level in LEVELS]
    stops = {"decided": VotesConfig(max=most, stop="decided")} | {f"confident {v.level:g}": v for v in sure}
    sized = {
        f"{name}, rounds of {size}": votes.model_copy(update={"round": size})
        for name, votes in stops.items()
        for size in rounds
    }
    return {FULL: VotesConfig(max=most)} | sized


class Arm(NamedTuple):
    """One rule, one seed, by question: rollouts and tokens drawn, the vote as in the full one, and right, in {0, 1}."""

    rollouts: list[int]
    tokens: list[int]
    agrees: list[bool]
    right: list[float]


def run_seed(policy: Policy, labelled: LabelledSet, options: argparse.Namespace, seed: int) -> dict[str, Arm]:
    """Draw the full vote, replay each rule on it, then grade."""
    sampling = {"votes": options.votes, "train_rollouts": options.least, "max_new_tokens": MAX_NEW_TOKENS}
    sampler = make_sampler(policy, configure({"seed": seed, "sampling": sampling}))
    drawn = sampler.sample(labelled.questions, options.votes, step=0, purpose="train")
    saved = Saved.of(labelled.questions, drawn)
    voted = {
        name: vote_in_rounds(saved, labelled.questions, votes, options.least, step=0, purpose="train")
        for name, votes in rules(options.votes, options.rounds).items()
    }
    return {name: _arm(groups, voted[FULL], labelled) for name, groups in voted.items()}


def _arm(groups: Sequence[Group], full: Sequence[Group], labelled: LabelledSet) -> Arm:
    return Arm(
        [len(group.rollouts) for group in groups],
        [sum(len(rollout.token_ids) for rollout in group.rollouts) for group in groups],
        [a.vote.answer == b.vote.answer for a, b in zip(groups, full, strict=True)],
        [_right(group, labelled) for group in groups],
    )


def _right(group: Group, labelled: LabelledSet) -> float:
    """Return the score of the vote's answer, as `evaluation` grades it."""
    spec = group.question.spec
    answers = [parse(rollout.text, spec) for rollout in group.rollouts]
    winner = representative(answers, group.answers, group.vote.answer)
    return grade(winner, labelled.key[group.question.id], spec).score


class Row(NamedTuple):
    """One rule over all seeds. Shares in [0, 1]; `worse` is the full vote's accuracy minus this one's, paired."""

    rollouts: float
    tokens: float
    saved: Interval
    agreement: float
    accuracy: Interval
    accuracy_by_seed: Interval
    worse: Interval


def rows(seeds: Sequence[dict[str, Arm]]) -> dict[str, Row]:
    """Compute the table. Intervals are over questions, averaged over seeds, unless their name says otherwise."""
    return {name: _row([seed[name] for seed in seeds], [seed[FULL] for seed in seeds]) for name in seeds[0]}


def _row(arms: Sequence[Arm], full: Sequence[Arm]) -> Row:
    tokens_SQ, all_SQ = (np.array([arm.tokens for arm in each], float) for each in (arms, full))
    right_SQ, best_SQ = (np.array([arm.right for arm in each]) for each in (arms, full))
    saved_S = 1 - tokens_SQ.sum(axis=1) / all_SQ.sum(axis=1)
    return Row(
        rollouts=float(np.mean([arm.rollouts for arm in arms])),
        tokens=float(tokens_SQ.mean()),
        saved=over_seeds(saved_S.tolist()),
        agreement=float(np.mean([arm.agrees for arm in arms])),
        accuracy=over_questions(right_SQ),
        accuracy_by_seed=over_seeds(right_SQ.mean(axis=1).tolist()),
        worse=over_questions(best_SQ - right_SQ),
    )


COLUMNS = (
    "stop", "rollouts a question", "tokens a question", "tokens saved, % (over seeds)",
    "same answer as the full vote, %", "label accuracy, % (over questions)", "(over seeds)",
    "full minus this, points (over questions)",
)  # fmt: skip


def markdown(table: dict[str, Row]) -> str:
    """Write the table for a page."""
    body = [
        [name, f"{row.rollouts:.1f}", f"{row.tokens:.0f}", percent(row.saved), f"{100 * row.agreement:.2f}"]
        + [percent(interval) for interval in (row.accuracy, row.accuracy_by_seed, row.worse)]
        for name, row in table.items()
    ]
    return markdown_table(COLUMNS, body)


def figures(table: dict[str, Row], seeds: Sequence[dict[str, Arm]]) -> dict[str, Any]:
    """Return what `--json` prints; the ratio of the exact rule is at the configuration's rounds."""
    decided = table[f"decided, rounds of {VotesConfig().round}"]
    return {
        "rows": plain(table),
        "adaptive_token_ratio": 1 - decided.saved.value,
        "adaptive_same_labels": decided.agreement,
        "seeds": len(seeds),
        "questions": len(seeds[0][FULL].right),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    assert __doc__ is not None
    parser = command_line(__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=32)
    parser.add_argument("--least", type=int, default=4, help="rollouts of every question, those that are trained on")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 4], help="rollouts of a further round")
    options = parser.parse_args(arguments)
    options.rounds = sorted({*options.rounds, VotesConfig().round})
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, replay, grade, print."""
    options = parse_arguments(arguments)
    seeds = each_seed(options, lambda start, seed: run_seed(*start, options, seed))
    table = rows(seeds)
    found = figures(table, seeds)
    print(
        f"`digits` {options.split}, {found['questions']} questions, {options.seeds} seeds, {options.votes} votes, "
        f"{options.least} at least; {torch.get_num_threads()} thread(s)\n\n{markdown(table)}"
    )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
