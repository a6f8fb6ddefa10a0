"""What a method may choose: one row, made of functions. Their types are the seams between methods and the trainer.

A rule is a function; a row holds makers of rules, functions of the method's options that return one. `rule` and `made`
import tensor code only when a rule is made, because importing torch takes seconds and `mm-spine methods` only lists
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mm_spine.config import Denominator, MethodConfig
from mm_spine.methods.choices import all_tokens, majority, token_entropy, token_position, top_share

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from mm_spine.methods.band import BoundsRule
    from mm_spine.methods.choices import Signal
    from mm_spine.methods.tokens import Tokens
    from mm_spine.methods.weights import MaskRule
    from mm_spine.types import Ask, Group, Growth, Reward, Statistic

Rule = TypeVar("Rule")
Maker = Callable[[Any], Rule]
"""(options of the method, MethodConfig or its own subclass) -> a rule."""


class Batch(NamedTuple):
    """The rollouts of a step, those of all ranks, without gradients.

    `memory` is what the method remembers from earlier steps: values that JSON can hold.
    """

    groups: Sequence[Group]
    step: int = 0
    seed: int = 0
    memory: Mapping[str, Any] = {}


class View(NamedTuple):
    """What a term of the loss sees of a micro-batch of N responses of T tokens.

    `logp_NT` and `entropy_NT` (nats) are the policy's now, with gradient; `old_logp_NT` are its log-probs before the
    step's first update, `sampled_logp_NT` the sampler's. `advantage_NT` may be of shape (N, 1). `clip_low` and
    `clip_high` are numbers, or of shape (N, T). `statistic_NT` is the term's own statistic of the head, with gradient;
    None where it has none. Values count only at the tokens that the term acts on.
    """

    logp_NT: Tensor
    old_logp_NT: Tensor
    sampled_logp_NT: Tensor
    entropy_NT: Tensor
    advantage_NT: Tensor
    clip_low: Tensor | float
    clip_high: Tensor | float
    statistic_NT: Tensor | None = None


class Term(NamedTuple):
    """A further term of the loss: coefficient times the mean of `value` over the tokens that it acts on.

    It acts on the tokens where `Tokens.weights[name]` is not 0, each with that weight; on those of the policy term
    where a response has no weights of that name. `anchored` says that its statistic reads the anchor's log-probs.
    """

    name: str
    value: Callable[[View], Tensor]
    coefficient: float
    denominator: Denominator = "all"
    statistic: Statistic | None = None
    anchored: bool = False


Credit = Callable[[Batch, "list[Tensor]"], "list[Tensor]"]
"""(batch, rewards or advantages (N,) of each question) -> advantages of the same shapes.

Each rollout that has credit is in the batch as often as it counts."""

Choice = Callable[[Batch, "list[list[Tokens]]"], "list[list[Tokens]]"]
"""(batch with rewards and advantages, tokens of each rollout of each question) -> the same with other masks, with an
advantage or clipping limits for each token, or with weights of a term.

Copies of a response must get the same (they are trained as one), and what the policy term left out stays out."""

Objective = Callable[[View], "Tensor"]
"""(view) -> what the policy term maximises, (N, T)."""

StepLoss = Callable[[Batch, "list[list[Tensor]]"], "Tensor"]
"""(batch with rewards and advantages, log-ratios logp - old logp (T,) of each rollout of each question) -> a loss of
the whole step, a scalar, differentiable by the log-ratios."""

Remember = Callable[[Batch, "list[list[Tokens]]"], Mapping[str, Any]]
"""(batch of the step that is done, its tokens) -> what the method remembers: values that JSON can hold."""

Asks = Callable[["Group", Any], "list[Ask | None]"]
"""(group before credit, tokenizer) -> what to score for each rollout, None for nothing. The log-probs of the counted
tokens, (K,) in nats, become `Group.measured`, which the reward reads."""

Judge = Callable[["Group", "list[Image]", "torch.device"], "list[np.ndarray]"]
"""(group before credit, images of its question, the policy's device) -> what another model says of each rollout, which
becomes `Group.measured`. Equal responses must get equal values."""

Replay = Callable[[Batch], "list[Group]"]
"""(batch before credit) -> its groups with rollouts of earlier steps, recalled from the memory and marked `replayed`.

A recalled rollout has an index that no other of its question has, and the log-probs of the step that drew it."""


def rule(module: str, name: str) -> Maker[Any]:
    """Return a maker of the rule `name` of `mm_spine.methods.<module>`, with the options as its first argument."""

    def make(options: MethodConfig) -> Any:
        return partial(_function(module, name), options)

    return make


def made(module: str, name: str) -> Maker[Any]:
    """Return a maker of what the function `name` of `mm_spine.methods.<module>` returns for the options."""
    return lambda options: _function(module, name)(options)


def chain(*links: Maker[Credit]) -> Maker[Sequence[Credit]]:
    """Return a maker of a chain of credit."""
    return lambda options: [link(options) for link in links]


def _function(module: str, name: str) -> Any:
    # By name, because these modules import this one.
    return getattr(import_module(f"mm_spine.methods.{module}"), name)


NORMALISED = rule("credit", "normalised")
"""Normalise rewards as `method.advantage` says."""

usual_credit = chain(NORMALISED)


def usual_objective(options: MethodConfig) -> Objective:
    """Maximise PPO's clipped surrogate."""
    found: Objective = _function("terms", "surrogate_of")
    return found


def no_terms(options: MethodConfig) -> Sequence[Term]:
    """Add no term to policy term, band and KL."""
    return ()


TTRL_KL = {"kl": "k3", "kl_weight": 0.001}
"""The options of a row with the KL of `ttrl`."""

NO_ENTROPIES: Mapping[str, Any] = {"signal": token_position, "entropies": False}
"""What a row sets that acts on all tokens and reads no token entropies."""


@dataclass(frozen=True)
class Method:
    """One method.

    Every choice but `signal` is a maker: a function of the options. In the order of the algorithm: `growth`, made from
    the options and the policy, says how rollouts grow from others where no section of `sampling` does; `statistic` is
    measured at every token of the rollouts, by scoring them once (`Rollout.statistic`); `asks` has the policy score
    further tokens of each rollout, or `judge` another model the rollouts themselves, both before credit and divided
    over all ranks; `replay` adds rollouts of earlier steps; `reward` scores rollouts; `credit` is a chain from rewards
    to advantages; `policy_mask`, `band_mask` and `bounds` select tokens by `signal`; `choice` may give each token an
    advantage, clipping limits or weights of its own; `objective` is what the policy term maximises, or `step_loss` a
    loss of the whole step in its place (with `optim.epochs=1`); `terms` adds to policy term, band and KL;
    `anchor_decay` makes the anchor follow the policy: after each step's update its weights are that times themselves
    plus the rest times the policy's; `remember` fills the memory, which is saved in checkpoints.

    `options` holds this method's defaults of the section `method` of the configuration, `section` the class of that
    section, `sampling` the defaults of the section `sampling`. `entropies` is False where no choice reads token
    entropies: rollouts without them are then not scored. With `anchor_on_forks` the KL acts on the tokens of the band,
    else on those of the policy term. `check` raises ConfigError for options with which the method cannot run, before a
    model loads; `reads` names folders that the method reads, whose files are part of a run's fingerprint. `formula`
    states in text what the method computes, `ours` what no public text says and we chose, `reported` when it was
    published to help and when not, with its source.
    """

    summary: str
    source: str
    formula: str = ""
    ours: str = ""
    reported: str = ""
    growth: Callable[[Any, Any], Growth] | None = None
    replay: Maker[Replay] | None = None
    statistic: Maker[Statistic] | None = None
    asks: Maker[Asks] | None = None
    judge: Maker[Judge] | None = None
    reward: Maker[Reward] = majority
    credit: Maker[Sequence[Credit]] = usual_credit
    signal: Signal = token_entropy
    policy_mask: Maker[MaskRule] = all_tokens
    band_mask: Maker[MaskRule] = top_share
    bounds: Maker[BoundsRule] | None = None
    choice: Maker[Choice] | None = None
    objective: Maker[Objective] = usual_objective
    step_loss: Maker[StepLoss] | None = None
    terms: Maker[Sequence[Term]] = no_terms
    anchor_decay: Maker[float] | None = None
    remember: Maker[Remember] | None = None
    entropies: bool = True
    anchor_on_forks: bool = False
    section: type[MethodConfig] = MethodConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Any], None] | None = None
    reads: Callable[[Any], Sequence[Path]] | None = None
    trains: bool = True
    label_free: bool = True

    def grown(self, options: MethodConfig, policy: Any) -> Growth | None:
        """Return how rollouts of `policy` grow from others, None where they do not or the configuration says it."""
        return None if self.growth is None else self.growth(options, policy)
