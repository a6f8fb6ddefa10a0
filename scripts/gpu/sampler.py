"""The transformers sampler at the shape of Qwen2.5-VL-3B, beside transformers' own `generate`: tokens per second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timing
import torch
import workload
from sampling import configuration
from workload import Sizes

from gpu import shapes
from gpu.notes import Setting, one_line
from gpu.update import free
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.processors.chat import encode
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import Question

TABLE = "Rollouts of one question with an image"
ROWS, TOKENS = (8, 32, 64, 128, 256), 128
TINY_ROWS, TINY_TOKENS = (2, 4), 5
KV_GIGABYTES = 24.0
GROWTH = 3.0
"""From one count of rows to the next, a call is expected to take at most so many times as long."""


def measure(setting: Setting) -> None:
    """Measure ours and `generate` with more and more rows, while there is time; each makes all its rows in one call."""
    rows = TINY_ROWS if setting.rehearsal else ROWS
    sizes = shapes.of_3b(setting.rehearsal, rows[0], TINY_TOKENS if setting.rehearsal else TOKENS)
    (question,) = workload.make_questions(sizes)
    plain, policy = make_models(sizes, setting.device)
    setting.notes.say(
        f"{shapes.in_words(sizes)}, image of {sizes.image_tokens:,} tokens, responses of exactly "
        f"{sizes.response_tokens} tokens. `generate` encodes the image and the prompt once per row; ours has the "
        "image's features already, as in any step after the first. Seconds are of one call, after one with the fewest "
        "rows."
    )
    ways: dict[str, Callable[[int], Any]] = {
        "ours": lambda count: ours(policy, question, sizes, count),
        "transformers' generate": lambda count: generate(plain, policy, question, sizes, count),
    }
    for draw in ways.values():
        draw(rows[0])
    last = dict.fromkeys(ways, 0.0)
    for count in rows:
        for name, draw in ways.items():
            if last[name] * GROWTH > setting.notes.left():
                setting.notes.row(TABLE, rows=count, sampler=name, **{"": "left out: no time left"})
                continue
            found = one(name, draw, count, sizes, setting)
            last[name] = found.get("seconds", last[name])
            setting.notes.row(TABLE, rows=count, sampler=name, **found)


def one(name: str, draw: Callable[[int], Any], count: int, sizes: Sizes, setting: Setting) -> dict[str, Any]:
    """Return the figures of one call, or that it does not fit into the memory."""
    free(setting.device)
    try:
        took = timing.timed(lambda: draw(count), setting.device)
    except torch.OutOfMemoryError as error:
        return {"": f"does not fit: {one_line(error)}"}
    tokens = count * sizes.response_tokens
    return {"tokens": tokens, "seconds": took.wall, "tokens/s": tokens / took.wall}


def make_models(sizes: Sizes, device: torch.device) -> tuple[Any, Policy]:
    """Return two models with the same weights and no end token that may be drawn: plain, and in a policy."""
    plain, model = (shapes.make_model(sizes, device) for _ in range(2))
    processor = workload.make_processor()
    for each in (plain, model):
        workload.without_end(each, processor)
    return plain, workload.make_policy(model, processor, sizes)


def ours(policy: Policy, question: Question, sizes: Sizes, rows: int) -> None:
    """Draw `rows` responses with the product's sampler."""
    config = configuration(sizes, "hf")
    sampling = config.sampling.model_copy(update={"batch_rows": rows, "kv_cache_gb": KV_GIGABYTES})
    sampler = make_sampler(policy, config.model_copy(update={"sampling": sampling}))
    (drawn,) = sampler.sample([question], rows, step=0, purpose="gpu-check")
    short = [len(rollout.token_ids) for rollout in drawn if len(rollout.token_ids) != sizes.response_tokens]
    if len(drawn) != rows or short:
        raise RuntimeError(f"{len(drawn)} responses of {rows}, {len(short)} of them too short: no rate to compare")


@torch.no_grad()
def generate(model: Any, policy: Policy, question: Question, sizes: Sizes, rows: int) -> None:
    """Draw `rows` responses with transformers' generate."""
    encoded = encode(question, policy.processor, workload.TOKEN_PIXELS**2, workload.MOST_PIXELS)
    arguments = {
        "input_ids": encoded.ids_L[None],
        "attention_mask": torch.ones_like(encoded.ids_L)[None],
        "mm_token_type_ids": encoded.types_L[None],
        "pixel_values": torch.cat([image.pixel_values for image in encoded.images]).to(DTYPES[sizes.dtype]),
        "image_grid_thw": torch.stack([image.grid_thw for image in encoded.images]),
    }
    drawn = model.generate(
        **{name: value.to(model.device) for name, value in arguments.items()},
        do_sample=True,
        temperature=1.0,
        top_k=0,
        num_return_sequences=rows,
        max_new_tokens=sizes.response_tokens,
        suppress_tokens=list(policy.banned),
    )
    if drawn.shape != (rows, len(encoded.ids_L) + sizes.response_tokens):
        raise RuntimeError(f"generate returned {tuple(drawn.shape)}: no rate to compare")
