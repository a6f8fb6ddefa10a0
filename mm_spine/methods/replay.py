"""Responses of earlier steps that train again: kept in the memory, and recalled into the group of their question.

A recalled rollout has the log-probs of the step that drew it, against which its importance ratio is taken. Source of
the rules: R3 (arXiv 2601.19620, algorithm 1 and eq. 3), with the vote in place of its verifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from mm_spine.methods.credit import advantages, normalised
from mm_spine.methods.method import Batch
from mm_spine.methods.sections import R3Config
from mm_spine.methods.tokens import Tokens
from mm_spine.types import Answer, Group, Rollout

KEPT = "replay"
"""The entry of the memory: question id -> what `_kept` makes of the responses that lost the vote, the latest last."""


def recall_opposed(options: R3Config, batch: Batch) -> list[Group]:
    """Add to each unanimous group the latest kept responses of its question whose answer is another."""
    kept = batch.memory.get(KEPT, {})
    return [_with_opposed(group, kept.get(group.question.id, ()), options.replay_count) for group in batch.groups]


def keep_losers(options: R3Config, batch: Batch, tokens: list[list[Tokens]]) -> Mapping[str, Any]:
    """Keep the responses of this step that lost the vote: of each question the latest, each text of tokens once."""
    memory = dict(batch.memory.get(KEPT, {}))
    for group in batch.groups:
        rows = {tuple(row["token_ids"]): row for row in memory.get(group.question.id, ())}
        for rollout, answer, parsed in zip(group.rollouts, group.answers, group.parsed, strict=True):
            lost = group.vote.answer is not None and answer != group.vote.answer
            if lost and not rollout.replayed and rollout.index not in group.dropped and _comparable(parsed):
                rows.pop(rollout.token_ids, None)
                rows[rollout.token_ids] = _kept(rollout, parsed)
        if rows:
            memory[group.question.id] = list(rows.values())[-options.replay_kept :]
    return {KEPT: memory}


def mixed(options: R3Config, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Return (r - mean) / (replay_scale std + eps) in groups with recalled responses (eq. 3), the usual elsewhere."""
    usual = normalised(options, batch, rewards_QN)
    scale = options.replay_scale
    recalled = advantages(rewards_QN, "group", options.std, options.eps / scale)
    return [
        recalled_N / scale if any(rollout.replayed for rollout in group.rollouts) else usual_N
        for group, recalled_N, usual_N in zip(batch.groups, recalled, usual, strict=True)
    ]


def _with_opposed(group: Group, kept: Any, count: int) -> Group:
    """Return a group whose responses all agree with the vote with up to `count` of the `kept` ones that do not."""
    winner = group.vote.answer
    agreed = [parsed for parsed, answer in zip(group.parsed, group.answers, strict=True) if answer == winner]
    if winner is None or len(agreed) < len(group.rollouts) or not all(map(_comparable, agreed)):
        return group
    keys = {parsed.key for parsed in agreed if parsed is not None}
    opposed = [row for row in kept if row["answer"] is None or row["answer"][1] not in keys][-count:]
    first = 1 + max(rollout.index for rollout in group.rollouts)
    rollouts = [_recalled(group.question.id, first + i, row) for i, row in enumerate(opposed)]
    answers = [None if row["answer"] is None else Answer(*row["answer"]) for row in opposed]
    return replace(
        group,
        rollouts=(*group.rollouts, *rollouts),
        # Any name but the winner's: the class of the present vote is not known.
        answers=(*group.answers, *(None if answer is None else f"earlier: {answer.text}" for answer in answers)),
        parsed=(*group.parsed, *answers),
    )


def _comparable(parsed: Answer | None) -> bool:
    """Whether an answer can be told from those of another step: it has a canonical key, or none was parsed."""
    return parsed is None or parsed.key is not None


def _kept(rollout: Rollout, parsed: Answer | None) -> dict[str, Any]:
    """Return what JSON can hold of a response."""
    return {
        "token_ids": list(rollout.token_ids),
        "logp": rollout.logp.tolist(),
        "text": rollout.text,
        "finish_reason": rollout.finish_reason,
        "answer": None if parsed is None else list(parsed),
    }


def _recalled(question_id: str, index: int, row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        question_id,
        index,
        tuple(row["token_ids"]),
        row["text"],
        np.array(row["logp"], np.float32),
        None,
        row["finish_reason"],
        replayed=True,
    )
