"""Measure what trees and votes that stop early draw on `digits` beside full votes, and bf16's batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timing
import torch
from drawn import Drawn, drawn_tokens, flat, logprob_gap, markdown_table

from mm_spine.benchmarks import digits
from mm_spine.config import ModelConfig, RunConfig, TreeConfig, VotesConfig
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import make_sampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.types import Group, Question

# The study of trees and this benchmark count the same tokens. The folder comes last, so that no name here is hidden.
sys.path.append(str(Path(__file__).resolve().parents[1] / "study"))
from tree_metrics import fork_depths, ratio_by_forks, token_ratio

DEFAULT_ROUND = VotesConfig().round
FULL, DECIDED, CONFIDENT = "flat, full", "flat, until decided", "flat, until confident"
IN_ROUNDS = f"flat, until decided, rounds of {DEFAULT_ROUND}"
LEAVES, TREES, TREES_DECIDED = "flat, as many as leaves", "trees", "trees, until decided"


@dataclass(frozen=True)
class Sizes:
    """Of the part on `digits`: `questions` of split `adapt`, full vote and leaves, the rounds, the tree."""

    questions: int = 64
    votes: int = 32
    least: int = 16
    round: int = 1
    roots: int = 12
    forks: int = 2
    branches: int = 2
    max_new_tokens: int = 48
    seed: int = 0

    @property
    def tree(self) -> TreeConfig:
        return TreeConfig(forks=self.forks, branches=self.branches)

    @property
    def leaves(self) -> int:
        return self.roots * (1 + self.forks * self.branches)


class Voted(NamedTuple):
    """One way to vote: its groups, seconds by the clock of one turn, drawn tokens."""

    groups: list[Group]
    seconds: float
    tokens: int


def configuration(sizes: Sizes, backend: str, tree: bool = False) -> RunConfig:
    """Return the configuration of `digits` on `backend`, for the full vote or for the leaves."""
    sampling = {"backend": backend, "max_new_tokens": sizes.max_new_tokens, "train_rollouts": min(sizes.least, 2)}
    more = {"votes": sizes.leaves, "tree": sizes.tree.model_dump()} if tree else {"votes": sizes.votes}
    return configure({"seed": sizes.seed, "sampling": sampling | more})


def vote(policy: Policy, questions: Sequence[Question], sizes: Sizes, backend: str) -> dict[str, Voted]:
    """Vote in every way, after one draw that is not counted: prompts and images are then known to all of them."""
    sampler = make_sampler(policy, configuration(sizes, backend))
    trees = make_sampler(policy, configuration(sizes, backend, tree=True))
    sampler.sample(questions, 1, step=1, purpose="train")

    def rounds(asked: Sampler, most: int, stop: str = "never", size: int = sizes.round) -> list[Group]:
        rule = VotesConfig.model_validate({"max": most, "stop": stop, "round": size})
        return vote_in_rounds(asked, questions, rule, sizes.least, step=0, purpose="train")

    ways: Mapping[str, Callable[[], list[Group]]] = {
        FULL: lambda: rounds(sampler, sizes.votes),
        DECIDED: lambda: rounds(sampler, sizes.votes, "decided"),
        IN_ROUNDS: lambda: rounds(sampler, sizes.votes, "decided", DEFAULT_ROUND),
        CONFIDENT: lambda: rounds(sampler, sizes.votes, "confident"),
        LEAVES: lambda: rounds(sampler, sizes.leaves),
        TREES: lambda: rounds(trees, sizes.leaves),
        TREES_DECIDED: lambda: rounds(trees, sizes.leaves, "decided"),
    }
    return {name: _timed(way) for name, way in ways.items()}


def _timed(way: Callable[[], list[Group]]) -> Voted:
    kept: list[Group] = []
    took = timing.timed(lambda: kept.extend(way()), torch.device("cpu"))
    return Voted(kept, took.wall, drawn_tokens([group.rollouts for group in kept]))


FULL_VOTE = {DECIDED: FULL, IN_ROUNDS: FULL, CONFIDENT: FULL, TREES: LEAVES, TREES_DECIDED: TREES}
"""Which full vote a way's answers are compared with; the others are full themselves."""


def agreement(voted: Mapping[str, Voted], name: str) -> float:
    """Return the share of the questions whose answer is the full vote's."""
    mine, full = voted[name].groups, voted[FULL_VOTE.get(name, name)].groups
    return float(np.mean([a.vote.answer == b.vote.answer for a, b in zip(mine, full, strict=True)]))


def figures(voted: Mapping[str, Voted]) -> dict[str, Any]:
    """Compute the ratios of drawn tokens, fork positions and agreements of one backend, and its table."""
    leaves = flat([group.rollouts for group in voted[TREES].groups])
    return {
        "tree_token_ratio": voted[TREES].tokens / voted[LEAVES].tokens,
        "tree_token_ratio_by_leaves": token_ratio(leaves),
        "tree_token_ratio_by_forks": ratio_by_forks(leaves),
        "tree_mean_fork_position": float(np.mean(fork_depths(leaves))),
        "tree_same_labels": agreement(voted, TREES),
        "adaptive_token_ratio": voted[DECIDED].tokens / voted[FULL].tokens,
        "adaptive_same_labels": agreement(voted, DECIDED),
        "adaptive_token_ratio_default_round": voted[IN_ROUNDS].tokens / voted[FULL].tokens,
        "confident_token_ratio": voted[CONFIDENT].tokens / voted[FULL].tokens,
        "confident_same_labels": agreement(voted, CONFIDENT),
        "adaptive_tree_token_ratio": voted[TREES_DECIDED].tokens / voted[TREES].tokens,
        "adaptive_tree_same_labels": agreement(voted, TREES_DECIDED),
        "ways": {
            name: {
                "seconds": way.seconds,
                "tokens": way.tokens,
                "tokens_per_second": way.tokens / way.seconds,
                "tokens_per_question": way.tokens / len(way.groups),
                "votes_per_question": float(np.mean([len(group.rollouts) for group in way.groups])),
                "agreement": agreement(voted, name),
            }
            for name, way in voted.items()
        },
    }


def gap(policy: Policy, voted: Mapping[str, Voted]) -> float:
    """Return the largest log-prob gap (nats) between sampler and trainer, of the full vote and of the trees."""
    return max(
        logprob_gap(policy, [g.question for g in voted[name].groups], [g.rollouts for g in voted[name].groups])
        for name in (FULL, TREES)
    )


def batch_shares(sizes: Sizes, questions: Sequence[Question], rows: Sequence[int] = (512, 16)) -> dict[str, float]:
    """Return by dtype the share of responses that differ between batches of up to `rows` rows, on transformers."""
    return {dtype: _differing(dtype, sizes, questions, rows) for dtype in ("float32", "bfloat16")}


def _differing(dtype: str, sizes: Sizes, questions: Sequence[Question], rows: Sequence[int]) -> float:
    policy = Policy.load(digits.MODEL_DIR, ModelConfig.model_validate({"dtype": dtype}))
    return differing_share(*(_in_batches(policy, sizes, questions, each) for each in rows))


def differing_share(a: Drawn, b: Drawn) -> float:
    """Return the share in [0, 1] of rollouts, question by question, whose token ids differ; 0 without rollouts."""
    pairs = [pair for rows in zip(a, b, strict=True) for pair in zip(*rows, strict=True)]
    return sum(x.token_ids != y.token_ids for x, y in pairs) / max(1, len(pairs))


def _in_batches(policy: Policy, sizes: Sizes, questions: Sequence[Question], rows: int) -> Drawn:
    config = configure({"sampling": {"votes": 16, "max_new_tokens": sizes.max_new_tokens, "batch_rows": rows}})
    return make_sampler(policy, config).sample(questions, 16, step=0, purpose="train")


RATES = ("", "tokens/s", "tokens a question", "seconds")


def rates_of(way: Mapping[str, Any]) -> list[str]:
    """Return the cells of `RATES` but the name."""
    seconds = way["wall"] if "wall" in way else way["seconds"]
    return [f"{way['tokens_per_second']:.0f}", f"{way['tokens_per_question']:.0f}", f"{seconds:.2f}"]


def show(on_digits: Mapping[str, Any], sizes: Sizes) -> str:
    """Write the table of votes and the figures that have floors, as Markdown."""
    votes = (
        [f"{backend}: {name}", *rates_of(way), f"{way['votes_per_question']:.1f}", f"{100 * way['agreement']:.1f}"]
        for backend, found in on_digits["backends"].items()
        for name, way in found["ways"].items()
    )
    differing = on_digits["differing"]
    parts = [
        _sizes_in_words(sizes),
        markdown_table((*RATES, "votes a question", "answers as the full vote's, %"), votes),
        *(_figures_in_words(backend, found) for backend, found in on_digits["backends"].items()),
        f"Responses that differ between batches of 512 and 16 rows: {differing['float32']:.2%} in fp32, "
        f"{differing['bfloat16']:.2%} in bf16.",
    ]
    return "\n\n".join(parts)


def _sizes_in_words(sizes: Sizes) -> str:
    return (
        f"`digits`, {sizes.questions} questions of split adapt, starting model, {sizes.votes} votes in rounds of "
        f"{sizes.round} after {sizes.least}; trees: {sizes.roots} roots, {sizes.forks} forks, {sizes.branches} "
        f"branches, {sizes.leaves} leaves. One turn each."
    )


def _figures_in_words(backend: str, found: Mapping[str, Any]) -> str:
    say = {name: f"{value:.3f}" for name, value in found.items() if isinstance(value, float)}
    return (
        f"{backend}: trees draw {say['tree_token_ratio']} of flat's tokens, {say['tree_token_ratio_by_leaves']} of "
        f"their leaves' ({say['tree_token_ratio_by_forks']} by the fork positions, mean t/T "
        f"{say['tree_mean_fork_position']}). Until decided, votes draw {say['adaptive_token_ratio']} of the full "
        f"vote's tokens, the same answer in {say['adaptive_same_labels']} of the questions; in rounds of "
        f"{DEFAULT_ROUND}, {say['adaptive_token_ratio_default_round']}; until confident "
        f"{say['confident_token_ratio']}, the same in {say['confident_same_labels']}; trees until decided "
        f"{say['adaptive_tree_token_ratio']} of all trees', the same in {say['adaptive_tree_same_labels']}. "
        f"Log-prob gap {found['logprob_gap']:.1e} nats."
    )
