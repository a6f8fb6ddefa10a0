"""The entropy band of the starting model, which `method.band_anchor=initial` keeps for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mm_spine import distributed
from mm_spine.config import RunConfig
from mm_spine.methods.apply import BAND
from mm_spine.methods.band import band_bounds
from mm_spine.methods.method import Method
from mm_spine.methods.weights import select
from mm_spine.sampling import Sampler
from mm_spine.training.schedule import batch_of
from mm_spine.types import Group, Question
from mm_spine.voting import make_group


def measure_fixed_band(
    questions: Sequence[Question],
    sampler: Sampler,
    method: Method,
    config: RunConfig,
    with_entropies: Callable[[Sequence[Group]], Sequence[Group]],
) -> dict[str, list[float]]:
    """Measure the band on rollouts of the first batch that can be asked, before any training, for the memory.

    `with_entropies` scores groups whose sampler gave no entropies. Nothing where the method has no band, the band is
    not fixed, or no question can be asked.
    """
    options = config.method
    if method.bounds is None or options.band_anchor != "initial":
        return {}
    for step in range(config.optim.steps):
        batch = batch_of(questions, config, step)
        mine = distributed.mine(batch, config.sampling.ranks_together)
        share = sampler.sample(mine, config.sampling.train_rollouts, step=step, purpose="anchor")
        rollouts = distributed.gather(share)
        drawn = [make_group(question, own) for question, own in zip(batch, rollouts, strict=True) if own]
        if drawn:
            scored = with_entropies(drawn)
            entropies = [torch.from_numpy(rollout.entropy) for group in scored for rollout in group.rollouts]
            masks = select(entropies, method.band_mask(options), options.mask_scope)
            bounds = band_bounds(entropies, masks, method.bounds(options), "batch")[0]
            return {BAND: [float(bound) for bound in bounds]}
    return {}
