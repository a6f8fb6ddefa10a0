"""From groups with credit to micro-batches: leaves, identical responses merged, packing by token budget, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mm_spine import distributed
from mm_spine.config import MethodConfig
from mm_spine.methods.apply import Tokens
from mm_spine.methods.band import Bounds
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


class MicroBatch(NamedTuple):
    """A packed batch of N leaves and what the loss needs in addition to the forward."""

    packed: PackedBatch
    advantage_N1: Tensor
    weight_N: Tensor
    length_N: Tensor
    sampled_logp_NT: Tensor
    policy_NT: Tensor
    band_NT: Tensor
    kl_NT: Tensor
    low_N1: Tensor
    high_N1: Tensor


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
        masks = (mask_T.numpy().tobytes() for mask_T in (chosen.policy_T, chosen.band_T, chosen.anchored_T))
        same = (rollout.token_ids, advantage, *masks)
        weight = rollout.weight + (leaves[same].rollout.weight if same in leaves else 0)
        leaves[same] = Leaf(replace(rollout, weight=weight), advantage, chosen)
    return LeafGroup(group.question, tuple(leaves.values()))


def trained_groups(
    groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], options: MethodConfig
) -> list[LeafGroup]:
    """Return the leaves of the groups that train.

    Such a group has a selected token, and either responses of different advantage or a regulariser (band or KL).
    """
    trained = []
    for group, chosen in zip(groups, tokens, strict=True):
        selected = any(bool(t.any_T.any()) for t in chosen)
        if selected and (prefers(group) or _is_regularised(chosen, options)):
            trained.append(merge_identical(group, chosen))
    return trained


def prefers(group: Group) -> bool:
    """Whether the policy term moves a group: one of its responses has an advantage."""
    return group.advantages is not None and bool(group.advantages.any())


def _is_regularised(tokens: Sequence[Tokens], options: MethodConfig) -> bool:
    """Whether band or KL act on a group without a preference."""
    anchored = options.kl != "none" and options.kl_weight > 0
    banded = options.band_low_weight + options.band_high_weight > 0 and any(t.bounds is not None for t in tokens)
    return options.unanimous == "regularise" and (anchored or banded)


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
    return MicroBatch(
        packed=pack([_branches(policy, group) for group in groups]),
        advantage_N1=torch.tensor([[leaf.advantage] for leaf in leaves], device=device),
        weight_N=torch.tensor([float(leaf.rollout.weight) for leaf in leaves], device=device),
        length_N=torch.tensor([float(len(leaf.rollout.token_ids)) for leaf in leaves], device=device),
        sampled_logp_NT=_pad((torch.from_numpy(leaf.rollout.logp) for leaf in leaves), device),
        policy_NT=_pad((leaf.tokens.policy_T for leaf in leaves), device),
        band_NT=_pad((leaf.tokens.band_T for leaf in leaves), device),
        kl_NT=_pad((leaf.tokens.anchored_T for leaf in leaves), device),
        low_N1=torch.stack([b.low for b in bounds])[:, None].to(device),
        high_N1=torch.stack([b.high for b in bounds])[:, None].to(device),
    )


def _branches(policy: Policy, group: LeafGroup) -> Branches:
    """Return the token tree of a leaf group: prompt, responses, and where each response is selected."""
    return Branches(
        policy.prompt(group.question),
        [torch.tensor(leaf.rollout.token_ids, dtype=torch.long) for leaf in group.leaves],
        [leaf.tokens.any_T for leaf in group.leaves],
    )


def _pad(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    return pad_sequence(list(tensors), batch_first=True).to(device)
