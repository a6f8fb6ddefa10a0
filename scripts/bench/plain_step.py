"""Do the same update in plain transformers: every rollout is a padded row that encodes its image again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from workload import MOST_PIXELS, TOKEN_PIXELS, Work, rows_at_once

from mm_spine.config import MethodConfig
from mm_spine.processors.chat import encode
from mm_spine.types import Group


class Rows(NamedTuple):
    """Rollouts of one question that share a forward: N rows of P prompt and T response tokens, the patches of all rows,
    and the credit."""

    ids_NP: Tensor
    mask_NP: Tensor
    types_NP: Tensor
    pixels: Tensor
    grids_N3: Tensor
    response_NT: Tensor
    chosen_NT: Tensor
    advantage_N1: Tensor


def make_rows(work: Work, processor: Any, device: torch.device, dtype: torch.dtype, vocab: int) -> list[Rows]:
    """Build padded rows, an equal number of `Rows` per question; each row has its own copy of the image's patches."""
    made = []
    for group, chosen in zip(work.groups, work.tokens, strict=True):
        encoded = encode(group.question, processor, TOKEN_PIXELS**2, MOST_PIXELS)
        size = rows_at_once(group, vocab)
        for first in range(0, len(group.rollouts), size):
            rows = _rows(group, chosen, encoded, slice(first, first + size))
            made.append(Rows(*(x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in rows)))
    return made


def _rows(group: Group, chosen: Any, encoded: Any, part: slice) -> Rows:
    responses = [torch.tensor(rollout.token_ids) for rollout in group.rollouts[part]]
    ids = [torch.cat([encoded.ids_L, response]) for response in responses]
    types = [torch.cat([encoded.types_L, torch.zeros_like(response)]) for response in responses]
    count = len(responses)
    assert group.advantages is not None
    return Rows(
        pad_sequence(ids, batch_first=True),
        pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        pad_sequence(types, batch_first=True),
        torch.cat([image.pixel_values for image in encoded.images] * count),
        torch.stack([image.grid_thw for image in encoded.images] * count),
        pad_sequence(responses, batch_first=True),
        pad_sequence([tokens.policy_T for tokens in chosen[part]], batch_first=True),
        group.advantages[part, None],
    )


def backward(model: Any, rows: Rows, tokens: int, options: MethodConfig) -> float:
    """Run the tower, the logits of every response token, the loss over `tokens` and the backward. Return the loss."""
    logits_NTV = model(
        input_ids=rows.ids_NP,
        attention_mask=rows.mask_NP,
        mm_token_type_ids=rows.types_NP,
        pixel_values=rows.pixels,
        image_grid_thw=rows.grids_N3,
        use_cache=False,
        logits_to_keep=rows.response_NT.shape[1] + 1,
    ).logits[:, :-1]
    return _finish(logits_NTV, rows, tokens, options)


class Cached(NamedTuple):
    """What need not be computed again in the next step: embeds' image features and the rows' M-RoPE positions."""

    features: Tensor
    positions_3NP: Tensor


@torch.no_grad()
def cache(model: Any, rows: Rows) -> Cached:
    """Run the tower once, repeat its features for every row, and compute the positions."""
    per_row = len(rows.pixels) // len(rows.ids_NP)
    grid = rows.grids_N3[: len(rows.grids_N3) // len(rows.ids_NP)]
    features = model.model.visual(rows.pixels[:per_row], grid_thw=grid).pooler_output
    positions, _ = model.model.get_rope_index(
        rows.ids_NP, mm_token_type_ids=rows.types_NP, image_grid_thw=rows.grids_N3, attention_mask=rows.mask_NP
    )
    return Cached(features.repeat(len(rows.ids_NP), 1), positions)


def backward_cached(model: Any, rows: Rows, cached: Cached, tokens: int, options: MethodConfig) -> float:
    """Do as `backward`, with image features from a cache in place of the tower."""
    embeds = model.model.language_model.embed_tokens(rows.ids_NP)
    at_image = (rows.types_NP == 1)[..., None].expand_as(embeds)
    hidden = model.model.language_model(
        inputs_embeds=embeds.masked_scatter(at_image, cached.features),
        attention_mask=rows.mask_NP,
        position_ids=cached.positions_3NP,
        use_cache=False,
    ).last_hidden_state
    logits_NTV = model.lm_head(hidden[:, -rows.response_NT.shape[1] - 1 : -1])
    return _finish(logits_NTV, rows, tokens, options)


def _finish(logits_NTV: Tensor, rows: Rows, tokens: int, options: MethodConfig) -> float:
    """Compute PPO's clipped term at ratio 1 on the chosen tokens, averaged over all `tokens`; run the backward."""
    log_probs_NTV = torch.log_softmax(logits_NTV.float(), dim=-1)
    logp_NT = log_probs_NTV.gather(-1, rows.response_NT[..., None])[..., 0]
    ratio = torch.exp(logp_NT - logp_NT.detach())
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    gain = torch.min(ratio * rows.advantage_N1, clipped * rows.advantage_N1)
    loss = -(gain * rows.chosen_NT).sum() / tokens
    loss.backward()
    return float(loss.detach())


@torch.no_grad()
def encode_images(model: Any, rows: list[Rows]) -> None:
    """Run the tower once per distinct image, which a cold step does beyond a warm one."""
    for each in rows:
        count = len(each.ids_NP)
        per_row = len(each.pixels) // count
        model.model.visual(each.pixels[:per_row], grid_thw=each.grids_N3[: len(each.grids_N3) // count])
