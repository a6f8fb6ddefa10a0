r"""ETMR's trees beside flat sampling on `digits`: tokens drawn, where the trees fork, and what the votes are worth.

    python scripts/study/trees.py [--seeds 5 --questions 256 --split adapt --roots 12 --forks 2 --branches 2] [--json]

The starting model votes with the leaves of `roots` trees, and with as many flat responses; flat again with as many
votes as the trees' tokens pay for when forks are uniform (36 of 60), and with as many as they paid for as measured.
The fewer flat votes are the first of the many: the draws of a response depend on its index alone. Seeds are seeds of
the draws. The labels are used after the sampling, by the grader of every evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from draws import (
    MAX_NEW_TOKENS,
    Drawn,
    Saved,
    command_line,
    drawn_tokens,
    each_seed,
    markdown_table,
    over_questions,
    percent,
    plain,
)
from tree_metrics import fork_depths, ratio_by_forks, token_ratio

from mm_spine import evaluation
from mm_spine.config import RunConfig, TreeConfig
from mm_spine.intervals import Interval, over_seeds
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import LabelledSet, Question, Rollout

TREE, FULL, FEWER, MATCHED = "trees", "flat, as many votes", "flat, votes of uniform forks", "flat, tokens as drawn"


class Arm(NamedTuple):
    """One way to vote, one seed: votes and drawn tokens per question, and each question's vote, right (1) or not."""

    votes: int
    tokens: float
    right: list[float]


class Seed(NamedTuple):
    """The arms of one seed, and of its trees: drawn over their leaves' tokens, the same by fork positions alone, the
    mean fork position t/T, and the share of questions whose vote is the full flat one."""

    arms: dict[str, Arm]
    by_leaves: float
    by_forks: float
    fork_position: float
    agreement: float


def run_seed(policy: Policy, labelled: LabelledSet, tree: TreeConfig, roots: int, seed: int) -> Seed:
    """Draw trees and flat responses for all questions, then grade their votes."""
    whole = 1 + tree.branches * tree.forks
    votes = roots * whole
    trees = draw(policy, labelled.questions, configuration(votes, seed, tree))
    many = draw(policy, labelled.questions, configuration(votes, seed))
    leaves = [leaf for tree in trees for leaf in tree]
    ratio = drawn_tokens(trees) / drawn_tokens(many)
    counts = {FEWER: round(roots * (1 + tree.branches * tree.forks / 2)), MATCHED: round(votes * ratio)}
    items = {TREE: graded(labelled, trees), FULL: graded(labelled, many)}
    items |= {name: graded(labelled, [group[:n] for group in many]) for name, n in counts.items()}
    drawn = {TREE: trees, FULL: many} | {name: [group[:n] for group in many] for name, n in counts.items()}
    arms = {name: _arm(drawn[name], items[name]) for name in items}
    by_leaves = token_ratio(leaves)
    same = [a.vote == b.vote for a, b in zip(items[TREE], items[FULL], strict=True)]
    return Seed(arms, by_leaves, ratio_by_forks(leaves), float(np.mean(fork_depths(leaves))), float(np.mean(same)))


def configuration(votes: int, seed: int, tree: TreeConfig | None = None) -> RunConfig:
    """Return the configuration of `digits` with other votes."""
    sampling: dict[str, Any] = {"votes": votes, "train_rollouts": 1, "max_new_tokens": MAX_NEW_TOKENS}
    return configure({"seed": seed, "sampling": sampling | ({"tree": tree.model_dump()} if tree else {})})


def draw(policy: Policy, questions: Sequence[Question], config: RunConfig) -> list[list[Rollout]]:
    """Draw the votes of one step."""
    return make_sampler(policy, config).sample(questions, config.sampling.votes.max, step=0, purpose="train")


def graded(labelled: LabelledSet, drawn: Drawn) -> list[evaluation.Item]:
    """Grade each question's vote over its rollouts, as every evaluation does."""
    saved = Saved.of(labelled.questions, drawn)
    return evaluation.evaluate(labelled.questions, labelled.key, saved, samples=len(drawn[0]), split="trees")


def _arm(drawn: Drawn, items: Sequence[evaluation.Item]) -> Arm:
    scores = [evaluation.maj_at_n(item) for item in items]
    return Arm(len(drawn[0]), drawn_tokens(drawn) / len(drawn), [score for score in scores if score is not None])


class Row(NamedTuple):
    """One way to vote over all seeds: label accuracy, and its difference to the trees', by questions and by seeds."""

    votes: float
    tokens: float
    ratio: float
    accuracy: Interval
    accuracy_by_seed: Interval
    difference: Interval
    difference_by_seed: Interval


def rows(seeds: Sequence[Seed]) -> dict[str, Row]:
    """Compute the table. Differences are trees minus the row, paired by seed and question."""
    return {name: _row(name, seeds) for name in seeds[0].arms}


def _row(name: str, seeds: Sequence[Seed]) -> Row:
    arms, trees, full = ([seed.arms[each] for seed in seeds] for each in (name, TREE, FULL))
    right_SQ = np.array([arm.right for arm in arms])
    apart_SQ = np.array([arm.right for arm in trees]) - right_SQ
    tokens = float(np.mean([arm.tokens for arm in arms]))
    ratio = float(np.mean([arm.tokens / whole.tokens for arm, whole in zip(arms, full, strict=True)]))
    votes = float(np.mean([arm.votes for arm in arms]))
    return Row(votes, tokens, ratio, *_intervals(right_SQ), *_intervals(apart_SQ))


def _intervals(values_SQ: np.ndarray) -> tuple[Interval, Interval]:
    """Return the mean with its interval over questions (averaged over seeds), and with that over seeds."""
    return over_questions(values_SQ), over_seeds(values_SQ.mean(axis=1))


COLUMNS = (
    "", "votes", "tokens a question", "of flat's", "label accuracy, % (over questions)", "(over seeds)",
    "trees minus this, points (over questions)", "(over seeds)",
)  # fmt: skip


def markdown(table: dict[str, Row], seeds: Sequence[Seed]) -> str:
    """Write the table and a description of the trees for a page."""
    words = {
        "drawn tokens over the leaves'": [seed.by_leaves for seed in seeds],
        "by the fork positions alone": [seed.by_forks for seed in seeds],
        "mean fork position t/T": [seed.fork_position for seed in seeds],
        "votes equal to the full flat vote's": [seed.agreement for seed in seeds],
    }
    said = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in words.items())
    rows = markdown_table(COLUMNS, (_cells(name, row) for name, row in table.items()))
    return f"{rows}\n\nTrees: {said} (means over {len(seeds)} seeds)."


def _cells(name: str, row: Row) -> list[str]:
    accuracy, differences = ([percent(each) for each in part] for part in (row[3:5], row[5:7]))
    counts = [f"{row.votes:g}", f"{row.tokens:.0f}", f"{row.ratio:.3f}"]
    return [name, *counts, *accuracy, *(["", ""] if name == TREE else differences)]


def figures(table: dict[str, Row], seeds: Sequence[Seed]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "rows": plain(table),
        "tree_token_ratio": table[TREE].ratio,
        "tree_token_ratio_by_leaves": float(np.mean([seed.by_leaves for seed in seeds])),
        "tree_token_ratio_by_forks": float(np.mean([seed.by_forks for seed in seeds])),
        "tree_mean_fork_position": float(np.mean([seed.fork_position for seed in seeds])),
        "tree_agreement": float(np.mean([seed.agreement for seed in seeds])),
        "seeds": len(seeds),
        "questions": len(seeds[0].arms[TREE].right),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    assert __doc__ is not None
    parser = command_line(__doc__.splitlines()[0])
    parser.add_argument("--roots", type=int, default=12)
    parser.add_argument("--forks", type=int, default=2)
    parser.add_argument("--branches", type=int, default=2)
    parser.add_argument("--rank-by", default="surprisal", choices=("surprisal", "entropy"))
    parser.add_argument("--distinct", action="store_true", help="branches draw other tokens than those at their fork")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, grade, print."""
    options = parse(arguments)
    tree = TreeConfig(
        forks=options.forks, branches=options.branches, rank_by=options.rank_by, distinct=options.distinct
    )
    seeds = each_seed(options, lambda start, seed: run_seed(*start, tree, options.roots, seed))
    table = rows(seeds)
    found = figures(table, seeds)
    print(
        f"`digits` {options.split}, {found['questions']} questions, {options.seeds} seeds, {options.roots} roots, "
        f"{tree.forks} forks by {tree.rank_by}, {tree.branches} branches{', distinct' if tree.distinct else ''}; "
        f"{torch.get_num_threads()} thread(s)\n\n{markdown(table, seeds)}"
    )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
