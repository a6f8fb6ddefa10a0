"""From groups with credit to micro-batches: leaves, identical responses merged, packing by token budget, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mm_spine import distributed
from mm_spine.config import MethodConfig
from mm_spine.methods.band import Bounds
from mm_spine.methods.method import Term
from mm_spine.methods.tokens import NO_WEIGHTS, Tokens
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, PackedBatch, pack, row_length
from mm_spine.types import Group, Question, Rollout


class Leaf(NamedTuple):
    """A distinct response of a question, counted `rollout.weight` times, with its advantage and selected tokens."""

    rollout: Rollout
    advantage: float
    tokens: Tokens

    @property
    def key(self) -> tuple[str, int]:
        """What identifies the leaf within a step: its question's id and the index of one of its rollouts."""
        return self.rollout.question_id, self.rollout.index


@dataclass(frozen=True, eq=False)
class LeafGroup:
    """The leaves of one question, or some of them where all together exceed the token budget."""

    question: Question
    leaves: tuple[Leaf, ...]


class ClipLimits(NamedTuple):
    """How far the importance ratio of each token may go, below and above 1."""

    low_NT: Tensor
    high_NT: Tensor


class MicroBatch(NamedTuple):
    """A packed batch of N leaves and what the loss needs in addition to the forward.

    `advantage_NT` has the shape (N, 1) where no token has an advantage of its own, `clip` is None where none has limits
    of its own. `weights` are those of further terms by name. `replayed_N` says which leaves were drawn at an earlier
    step, None where none was.
    """

    packed: PackedBatch
    advantage_NT: Tensor
    weight_N: Tensor
    length_N: Tensor
    sampled_logp_NT: Tensor
    policy_NT: Tensor
    band_NT: Tensor
    kl_NT: Tensor
    low_N1: Tensor
    high_N1: Tensor
    clip: ClipLimits | None = None
    weights: Mapping[str, Tensor] = NO_WEIGHTS
    replayed_N: Tensor | None = None

    def limits(self, options: MethodConfig) -> tuple[Tensor | float, Tensor | float]:
        """Return how far importance ratios may go below and above 1: the tokens' own limits, else the configured."""
        return self.clip or (options.clip_low, options.clip_high)

    def old_logp(self, before_NT: Tensor) -> Tensor:
        """Return what importance ratios are taken against: the log-probs `before_NT` the update, of replayed leaves
        those of the step that drew them."""
        if self.replayed_N is None:
            return before_NT
        return self.sampled_logp_NT.where(self.replayed_N[:, None], before_NT)


def gather_groups(share: Sequence[Group], questions: Sequence[Question]) -> list[Group]:
    """Return the groups of all ranks in the order of `questions`; a question that could not be asked has none."""
    # Images do not travel. The groups get this rank's own question objects back, which have them.
    light = [replace(group, question=replace(group.question, images=())) for group in share]
    groups = {group.question.id: group for group in distributed.gather(light)}
    return [replace(groups[q.id], question=q) for q in questions if q.id in groups]


def share_identical(group: Group) -> Group:
    """Give identical responses the log-probs and entropies of the first one."""
    # A sampler computes equal responses in different rows, which differ in rounding. Equal responses must get equal
    # masks, or they could not be merged into one leaf.
    first: dict[tuple[int, ...], Rollout] = {}
    for rollout in group.rollouts:
        first.setdefault(rollout.token_ids, rollout)
    same = [first[rollout.token_ids] for rollout in group.rollouts]
    pairs = zip(group.rollouts, same, strict=True)
    return replace(group, rollouts=tuple(replace(r, logp=f.logp, entropy=f.entropy) for r, f in pairs))


def merge_identical(group: Group, tokens: Sequence[Tokens]) -> LeafGroup:
    """Merge identical responses into leaves with a weight, where advantage and masks are the same too.

    Raises ValueError where the group has no advantages.
    """
    # An exact top-k over the batch may end between two equal tokens. Such responses stay separate leaves; in the
    # packed forward they still share all of their tree.
    if group.advantages is None:
        raise ValueError(f"{group.question.id}: no advantages yet; call assign_credit first")
    leaves: dict[tuple[Any, ...], Leaf] = {}
    for rollout, advantage, chosen in zip(group.rollouts, group.advantages.tolist(), tokens, strict=True):
        # A replayed response has log-probs of its own.
        drawn_by = rollout.logp.tobytes() if rollout.replayed else b""
        same = (rollout.token_ids, drawn_by, advantage, *chosen.parts())
        weight = rollout.weight + (leaves[same].rollout.weight if same in leaves else 0)
        leaves[same] = Leaf(replace(rollout, weight=weight), advantage, chosen)
    return LeafGroup(group.question, tuple(leaves.values()))


def trained_groups(
    groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], options: MethodConfig, terms: Sequence[Term] = ()
) -> list[LeafGroup]:
    """Return the leaves of the groups that train.

    Such a group has a selected token, and either responses of different advantage or a regulariser (band, KL or one of
    the further `terms`).
    """
    trained = []
    for group, chosen in zip(groups, tokens, strict=True):
        selected = any(bool(t.any_T.any()) for t in chosen)
        if selected and (prefers(group, chosen) or _is_regularised(chosen, options, terms)):
            trained.append(merge_identical(group, chosen))
    return trained


def prefers(group: Group, tokens: Sequence[Tokens]) -> bool:
    """Whether the policy term moves a group: one of its responses, or one of their tokens, has an advantage."""
    own = [chosen.advantage_T for chosen in tokens]
    if all(advantage_T is None for advantage_T in own):
        return group.advantages is not None and bool(group.advantages.any())
    return any(advantage_T is not None and bool(advantage_T.any()) for advantage_T in own)


def _is_regularised(tokens: Sequence[Tokens], options: MethodConfig, terms: Sequence[Term]) -> bool:
    """Whether band, KL or a further term act on a group without a preference."""
    banded = options.band_low_weight + options.band_high_weight > 0 and any(t.bounds is not None for t in tokens)
    further = any(term.coefficient and any(t.weights_of(term.name).any() for t in tokens) for term in terms)
    return options.unanimous == "regularise" and (options.kl_acts or banded or further)


def micro_batches(policy: Policy, groups: Sequence[LeafGroup], token_budget: int) -> list[list[LeafGroup]]:
    """Pack leaf groups into micro-batches of at most `token_budget` packed tokens, longest groups first.

    A group larger than the budget is divided into parts within it. Only a single leaf that is larger than the budget
    exceeds it, as a micro-batch of its own.
    """
    # No leaf depends on another one once the denominators are known, so parts of a group have the same gradient.
    parts = [part for group in groups for part in _divide(policy, group, token_budget)]
    sized = [(packed_length(policy, part), part) for part in parts]
    batches: list[list[LeafGroup]] = []
    room = 0
    for length, group in sorted(sized, key=lambda pair: -pair[0]):
        if not batches or length > room:
            batches.append([])
            room = token_budget
        batches[-1].append(group)
        room -= length
    return batches


def _divide(policy: Policy, group: LeafGroup, token_budget: int) -> list[LeafGroup]:
    """Divide a group into parts of at most `token_budget` packed tokens, or of a single leaf. Each holds the prompt."""
    if packed_length(policy, group) <= token_budget:
        return [group]
    parts: list[LeafGroup] = []
    # In the order of their tokens, leaves with a common beginning stay in one part and share it.
    for leaf in sorted(group.leaves, key=lambda leaf: leaf.rollout.token_ids):
        if parts:
            grown = replace(parts[-1], leaves=(*parts[-1].leaves, leaf))
            if packed_length(policy, grown) <= token_budget:
                parts[-1] = grown
                continue
        parts.append(replace(group, leaves=(leaf,)))
    return parts


def packed_length(policy: Policy, group: LeafGroup) -> int:
    """Return the packed tokens of a leaf group: its prompt once, and what its leaves do not share."""
    return row_length(_branches(policy, group))


def collate(policy: Policy, groups: Sequence[LeafGroup]) -> MicroBatch:
    """Build the tensors of a micro-batch on the policy's device."""
    device = policy.device
    leaves = [leaf for group in groups for leaf in group.leaves]
    no_band = Bounds(torch.zeros(()), torch.zeros(()))
    bounds = [leaf.tokens.bounds or no_band for leaf in leaves]
    names = sorted({name for leaf in leaves for name in leaf.tokens.weights})
    return MicroBatch(
        packed=pack([_branches(policy, group) for group in groups]),
        advantage_NT=_advantages(leaves, device),
        weight_N=torch.tensor([float(leaf.rollout.weight) for leaf in leaves], device=device),
        length_N=torch.tensor([float(len(leaf.rollout.token_ids)) for leaf in leaves], device=device),
        sampled_logp_NT=_pad((torch.from_numpy(leaf.rollout.logp) for leaf in leaves), device),
        policy_NT=_pad((leaf.tokens.policy_T for leaf in leaves), device),
        band_NT=_pad((leaf.tokens.band_T for leaf in leaves), device),
        kl_NT=_pad((leaf.tokens.anchored_T for leaf in leaves), device),
        low_N1=torch.stack([b.low for b in bounds])[:, None].to(device),
        high_N1=torch.stack([b.high for b in bounds])[:, None].to(device),
        clip=_clip_limits(leaves, device),
        weights={name: _pad((leaf.tokens.weights_of(name) for leaf in leaves), device) for name in names},
        replayed_N=_replayed(leaves, device),
    )


def _advantages(leaves: Sequence[Leaf], device: torch.device) -> Tensor:
    """Return the advantages (N, 1), or (N, T) where tokens have their own."""
    if all(leaf.tokens.advantage_T is None for leaf in leaves):
        return torch.tensor([[leaf.advantage] for leaf in leaves], device=device)
    own = (
        torch.full(leaf.tokens.policy_T.shape, leaf.advantage) if leaf.tokens.advantage_T is None
        else leaf.tokens.advantage_T
        for leaf in leaves
    )  # fmt: skip
    return _pad(own, device)


def _replayed(leaves: Sequence[Leaf], device: torch.device) -> Tensor | None:
    found = [leaf.rollout.replayed for leaf in leaves]
    return torch.tensor(found, device=device) if any(found) else None


def _clip_limits(leaves: Sequence[Leaf], device: torch.device) -> ClipLimits | None:
    """Return the limits of each token, None where no response has its own. Raises ValueError where only some have."""
    limits = [leaf.tokens.clip for leaf in leaves if leaf.tokens.clip is not None]
    if not limits:
        return None
    if len(limits) < len(leaves):
        bare = next(leaf.rollout for leaf in leaves if leaf.tokens.clip is None)
        raise ValueError(
            f"question {bare.question_id!r}, rollout {bare.index}: no clipping limits, but other responses have their "
            "own; the method's `choice` must give `Tokens.clip` to all responses or to none"
        )
    return ClipLimits(_pad((low_T for low_T, _ in limits), device), _pad((high_T for _, high_T in limits), device))


def _branches(policy: Policy, group: LeafGroup) -> Branches:
    """Return the token tree of a leaf group: prompt, responses, and where each response is selected."""
    return Branches(
        policy.prompt(group.question),
        [torch.tensor(leaf.rollout.token_ids, dtype=torch.long) for leaf in group.leaves],
        [leaf.tokens.any_T for leaf in group.leaves],
    )


def _pad(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    return pad_sequence(list(tensors), batch_first=True).to(device)
