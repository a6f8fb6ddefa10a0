"""The log-probability of the voted answer after a rollout's own reasoning, as its reward."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mm_spine.methods.rewards import measured
from mm_spine.methods.sections import LikelihoodConfig
from mm_spine.types import Answer, Ask, Group, Rollout

FALLBACK = "\nThe answer is "
"""What leads to the voted answer where a response does not hold its own answer literally."""


def voted_asks(options: LikelihoodConfig, group: Group, tokenizer: Any) -> list[Ask | None]:
    """Ask for the voted answer in the place of each rollout's own (z with y* for y: arXiv 2506.18254, section 2.2).

    Nothing is asked of a response without an answer, and of no response where nothing won the vote.
    """
    voted = voted_text(group)
    pairs = zip(group.rollouts, group.parsed, strict=True)
    return [
        None if voted is None or parsed is None else _ask(rollout, parsed, voted, tokenizer)
        for rollout, parsed in pairs
    ]


def likelihood_reward(options: LikelihoodConfig, group: Group) -> Tensor:
    """Return the log-probability, nats, of the voted answer, at least -`floor`; shape (N,) (arXiv 2602.03979).

    With `mean_prob`, the mean probability of its tokens (arXiv 2506.18254, eq. 2). What was not asked earns the least.
    """
    found = measured(group)
    if options.likelihood == "mean_prob":
        values = [0.0 if logp_K is None else float(torch.from_numpy(logp_K).exp().mean()) for logp_K in found]
    else:
        values = [
            -options.floor if logp_K is None else max(float(logp_K.sum()), -options.floor) for logp_K in measured(group)
        ]
    return torch.tensor(values)


def voted_text(group: Group) -> str | None:
    """Return the shortest text of an answer of the winning class, the class's name where no rollout kept one."""
    pairs = zip(group.parsed, group.answers, strict=True)
    texts = {parsed.text for parsed, name in pairs if parsed is not None and name == group.vote.answer}
    return min(texts, key=lambda text: (len(text), text), default=group.vote.answer)


def _ask(rollout: Rollout, parsed: Answer, voted: str, tokenizer: Any) -> Ask:
    """Replace the last mention of a response's answer. The voted answer's tokens count, and the one that ends it."""
    # Without the token that ends it, "1" would be as likely after a reasoning that leads to 12.
    places = [*re.finditer(rf"(?<!\w){re.escape(parsed.text)}(?!\w)", rollout.text)]
    before = rollout.text[: places[-1].start()] if places else rollout.text.rstrip() + FALLBACK
    after = rollout.text[places[-1].end() :] if places else "."
    encoded = tokenizer(before + voted + after, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(encoded["input_ids"]), encoded["offset_mapping"]
    begin, end = len(before), len(before) + len(voted)
    first = next(i for i, (_, stop) in enumerate(spans) if stop > begin)
    last = next((i for i, (start, _) in enumerate(spans) if start >= end), len(ids))
    if last == len(ids) and rollout.finish_reason == "stop" and rollout.token_ids:
        # The response ends with its answer, so that its end token ends the answer.
        ids.append(rollout.token_ids[-1])
    ids = ids[: last + 1]
    return Ask(tuple(ids), len(ids) - first)
