"""Estimate what a run takes, by arithmetic, without loading a model (`mm-spine adapt --dry-run`).

Every term has its formula in the docstring of the function that returns it. In the formulas T is the number of trained
parameters, `size` the bytes of a weight, and an optimiser is flat where DeepSpeed's ZeRO runs it: with bfloat16
weights, and from ZeRO stage 1 on. All figures are for one process; ZeRO divides gradients and optimiser state.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from mm_spine.config import LoraConfig, RunConfig
from mm_spine.methods.table import find
from mm_spine.policy.families import FAMILIES, family_of
from mm_spine.policy.head import CHUNK_BYTES, CHUNKS_ALIVE
from mm_spine.policy.merged import SHARD_BYTES
from mm_spine.policy.parameters import described_parameters, read_text_config
from mm_spine.processors.image_tokens import ImageTokens
from mm_spine.sampling.kv_cache import PREFILL_TOKENS

_BYTES = {"float32": 4, "bfloat16": 2}

# Bytes per trained parameter: AdamW's two fp32 moments, and an fp32 copy of the weight.
_MOMENTS, _MASTER = 8, 4

BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces over ranks at a time."""

SUB_GROUP = 1_000_000_000
"""Parameters that DeepSpeed's ZeRO stage 3 steps at a time, by its default."""

DRAW_BYTES = 8 * 64 * 2**20
"""Of a draw: a chunk of logits in fp32, and what is made of it, partly in fp64."""

PROMPT_TEXT = 120
"""Tokens of a prompt beside its image. Our assumption."""


# Names of the families' mergers, and of the projector that stands in their place in others.
_MERGERS = sorted({merger for family in FAMILIES.values() for merger in family.mergers})
_VISION_PART = re.compile(
    rf"(^|\.)(visual\.((?P<merger>{'|'.join(_MERGERS)})\.)?|(?P<projector>multi_modal_projector\.)"
    r"|vision_tower\.|image_newline$)"
)


class Sizes(NamedTuple):
    """Sizes of the text model: layers, widths of hidden state, queries (heads x head size), keys, FFN; vocabulary."""

    layers: int
    hidden: int
    queries: int
    keys: int
    ffn: int
    vocabulary: int


def read_sizes(folder: Path) -> Sizes:
    """Read the sizes that config.json gives, or leaves to transformers. Raises ModelError."""
    text = read_text_config(folder)
    hidden, heads = text.hidden_size, text.num_attention_heads
    # Qwen3's heads need not add up to the hidden width.
    head = getattr(text, "head_dim", None) or hidden // heads
    keys = text.num_key_value_heads * head
    return Sizes(text.num_hidden_layers, hidden, heads * head, keys, text.intermediate_size, text.vocab_size)


def count_parameters(folder: Path) -> dict[str, int]:
    """Count the parameters of the tower, its mergers and the text model from the safetensors headers.

    Without such files they are those of the model that config.json describes.
    """
    counts = {"tower": 0, "merger": 0, "text": 0}
    shards = sorted(folder.glob("*.safetensors"))
    for name, shape in chain(*map(_stored, shards)) if shards else described_parameters(folder):
        counts[_part(name)] += math.prod(shape)
    return counts


def _stored(shard: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield name and shape of the tensors in a file."""
    with safe_open(shard, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            yield name, tensors.get_slice(name).get_shape()


def _part(name: str) -> str:
    """Return the part of the model that a tensor of this name belongs to, in any family."""
    found = _VISION_PART.search(name)
    if found is None:
        return "text"
    return "merger" if found["merger"] or found["projector"] else "tower"


def count_adapter(sizes: Sizes, lora: LoraConfig) -> int:
    """Count LoRA's parameters: rank x (inputs + outputs) of q, k, v, o, gate, up and down in every layer."""
    attention = 2 * (sizes.hidden + sizes.queries) + 2 * (sizes.hidden + sizes.keys)
    return lora.rank * sizes.layers * (attention + 3 * (sizes.hidden + sizes.ffn))


class Load(NamedTuple):
    """What the formulas read of a run: parameters that train, that do not, and of the text model with its adapters and
    the mergers that train; the tower and its mergers; sizes of the text model; bytes of a weight; prompt in tokens."""

    trained: int
    frozen: int
    text: int
    tower: int
    sizes: Sizes
    size: int
    prompt: int


class Described(NamedTuple):
    """What is read of a model: parameters by part, sizes of the text model, and the tokens of an image."""

    counts: dict[str, int]
    sizes: Sizes
    image: ImageTokens


def describe(folder: Path) -> Described:
    """Read a model folder, of which config.json is enough."""
    config = json.loads((folder / "config.json").read_text())
    family = family_of(config.get("model_type"), folder)
    image = family.image_tokens(config, _image_processor(folder))
    return Described(count_parameters(folder), read_sizes(folder), image)


def _image_processor(folder: Path) -> dict[str, Any]:
    """Return the settings of the folder's image processor, none where no file holds them."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            found |= settings.get("image_processor", settings)
    return found


def load_of(config: RunConfig, model: Described) -> Load:
    """Return what the formulas read of a run of `model`."""
    counts, sizes = model.counts, model.sizes
    full, trains = config.model.train == "full", find(config.method.name).trains
    adapter = 0 if full else count_adapter(sizes, config.model.lora)
    merger = counts["merger"] if config.model.train_merger else 0
    trained = (counts["text"] if full else adapter) + merger if trains else 0
    return Load(
        trained=trained,
        frozen=sum(counts.values()) + adapter - trained,
        text=counts["text"] + adapter + merger,
        tower=counts["tower"] + counts["merger"],
        sizes=sizes,
        size=_BYTES[config.model.dtype],
        prompt=prompt_tokens(config, model),
    )


def prompt_tokens(config: RunConfig, model: Described) -> int:
    """Return the tokens of a prompt with one image, at most: those of the image, and PROMPT_TEXT.

    Its pixels are at most `model.max_pixels`, else those of the processor.
    """
    return PROMPT_TEXT + model.image.within(config.model.max_pixels)


def estimate(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return parameters, bytes, and tokens per step at most, for one process.

    `bytes_cache_of_responses` is the sampler's cache without prompts, which share its limit `sampling.kv_cache_gb`.
    vLLM holds weights of its own; on a card its cache is what they leave of `sampling.vllm.memory_share`.
    `bytes_activations_per_packed_token` is for each packed token of a micro-batch.
    """
    load = load_of(config, describe(folder))
    vllm = load.trained and config.sampling.backend == "vllm"
    return {
        "parameters_trainable": load.trained,
        "parameters_frozen": load.frozen,
        "parameters_tower_and_merger": load.tower,
        "bytes_weights": weight_bytes(load),
        "bytes_zero3_copy": zero3_bytes(config, load),
        "bytes_gradients": load.trained * load.size,
        "bytes_gradients_while_adding_up": gradient_sum_bytes(config, load),
        "bytes_optimizer": optimizer_bytes(config, load),
        "bytes_optimizer_step": step_bytes(config, load),
        "bytes_saving": save_bytes(config, load),
        "bytes_reference": anchor_bytes(config, load),
        "bytes_sampler_weights": load.text * load.size if vllm else 0,
        "bytes_cache_of_responses": cache_bytes(config, load),
        "bytes_activations_per_packed_token": (
            activation_bytes(load.sizes, load.size, config.engine.checkpoint_activations) if load.trained else 0
        ),
        "bytes_activations_at_most": micro_batch_bytes(config, load),
        "bytes_head_at_most": head_bytes(config, load),
        **_tokens(config, load.trained > 0),
    }


def is_flat(config: RunConfig, load: Load) -> bool:
    """Whether DeepSpeed's ZeRO optimiser takes the step, on flat fp32 copies of the weights."""
    return load.size == 2 or config.engine.zero_stage > 0


def weight_bytes(load: Load) -> int:
    """Return (trained + frozen parameters) x size."""
    return (load.trained + load.frozen) * load.size


def zero3_bytes(config: RunConfig, load: Load) -> int:
    """Return the training copy of ZeRO stage 3: text model, adapters and trained mergers x size.

    With `engine.keep_whole=false` the divided weights are the only ones.
    """
    copied = load.trained and config.engine.zero_stage == 3 and config.engine.keep_whole
    return load.text * load.size if copied else 0


def optimizer_bytes(config: RunConfig, load: Load) -> int:
    """Return T x 8 for AdamW's two fp32 moments, and T x 4 for the fp32 copy of a flat optimiser."""
    return load.trained * (_MOMENTS + (_MASTER if is_flat(config, load) else 0))


def anchor_bytes(config: RunConfig, load: Load) -> int:
    """Return T x size for the KL anchor's copy of the weights, 0 without an anchor.

    One that follows the policy also keeps its average in fp32 where weights are half floats: T x 4.
    """
    if not is_anchored(config):
        return 0
    moves = find(config.method.name).anchor_decay is not None
    return load.trained * (load.size + (4 if moves and load.size == 2 else 0))


def is_anchored(config: RunConfig) -> bool:
    """Whether the step computes the log-probs of an anchor: that of the KL, or one that follows the policy."""
    return config.method.kl != "none" or find(config.method.name).anchor_decay is not None


def gradient_sum_bytes(config: RunConfig, load: Load) -> int:
    """Return what adding up micro-batches takes beside the gradient's T x size.

    A flat optimiser holds the sum so far beside the gradient of the micro-batch in progress: T x size. Else DeepSpeed
    copies a bucket of gradients to reduce them: min(T, BUCKET) x size. A flat optimiser's bucket is not counted.
    """
    return (load.trained if is_flat(config, load) else min(load.trained, BUCKET)) * load.size


def step_bytes(config: RunConfig, load: Load) -> int:
    """Return what the optimiser's step takes beside gradients and state, on a GPU, where AdamW is fused.

    A flat optimiser lays the gradients out in one tensor, T x size, of which bfloat16 gets a copy in fp32, T x 4. Under
    ZeRO stage 3 T is at most SUB_GROUP. Without a flat optimiser nothing is needed. On a CPU AdamW is not fused and
    takes up to T x 8 more.
    """
    if not is_flat(config, load):
        return 0
    at_once = min(load.trained, SUB_GROUP) if config.engine.zero_stage == 3 else load.trained
    return at_once * (load.size + (4 if load.size == 2 else 0))


def save_bytes(config: RunConfig, load: Load) -> int:
    """Return what saving takes beside the weights: with LoRA, merged weights of one file, and the largest adapters'
    product.

    The merged weights of all layers, layers x hidden x (2 x queries + 2 x keys + 3 x FFN) x size, but at most those of
    a file of SHARD_BYTES. The product is hidden x FFN numbers in fp32, once as computed and once scaled.
    """
    if config.model.train == "full" or not load.trained:
        return 0
    sizes = load.sizes
    merged = sizes.layers * sizes.hidden * (2 * sizes.queries + 2 * sizes.keys + 3 * sizes.ffn) * load.size
    return min(SHARD_BYTES, merged) + 2 * 4 * sizes.hidden * sizes.ffn


def micro_batch_tokens(config: RunConfig, load: Load) -> int:
    """Return the packed tokens of the largest micro-batch: the budget, or a longer prompt with one response.

    Not more than the step has. With `auto` the budget is what the card has room for: one response must fit.
    """
    sampling, budget = config.sampling, config.engine.token_budget
    one = load.prompt + sampling.max_new_tokens
    group = load.prompt + sampling.train_rollouts * sampling.max_new_tokens
    return min(max(one, 0 if budget == "auto" else budget), config.optim.questions_per_step * group)


def micro_batch_bytes(config: RunConfig, load: Load) -> int:
    """Return `micro_batch_tokens` x `activation_bytes`."""
    recomputed = config.engine.checkpoint_activations
    return micro_batch_tokens(config, load) * activation_bytes(load.sizes, load.size, recomputed) if load.trained else 0


def head_bytes(config: RunConfig, load: Load) -> int:
    """Return what the head takes with chunks of the smallest size; on a GPU they grow with what is free.

    Of a chunk of logits CHUNKS_ALIVE tensors with a KL term, else 3. Of S selected tokens, at most all of a
    micro-batch, the hidden states, their gradient, and those of the anchor: 3 x S x hidden x size. Where the head
    trains, its gradient: vocabulary x hidden x size, and x 4 for its sum in fp32 beside bfloat16.
    """
    if not load.trained:
        return 0
    sizes, anchored, tokens = load.sizes, is_anchored(config), micro_batch_tokens(config, load)
    chunk = min(CHUNK_BYTES, 4 * tokens * sizes.vocabulary)
    hidden = (3 if anchored else 2) * tokens * sizes.hidden * load.size
    summed = load.size + (4 if load.size == 2 else 0)
    weight = sizes.vocabulary * sizes.hidden * summed if config.model.train == "full" else 0
    return (CHUNKS_ALIVE if anchored else 3) * chunk + hidden + weight


def token_cache_bytes(load: Load) -> int:
    """Return the keys and values of one token: layers x 2 x key width x size."""
    return load.sizes.layers * 2 * load.sizes.keys * load.size


def cache_bytes(config: RunConfig, load: Load) -> int:
    """Return the keys and values of the responses decoded together: rows x max_new_tokens x `token_cache_bytes`.

    Rows are `batch_rows`, or all of a step; the limit is `sampling.kv_cache_gb`. vLLM on a CPU allocates
    `sampling.vllm.kv_cache_gb` at the start.
    """
    sampling = config.sampling
    if not load.trained:
        return 0
    if sampling.backend == "vllm":
        return sampling.vllm.kv_cache_gb * 2**30
    rows = min(sampling.batch_rows, config.optim.questions_per_step * sampling.votes.max)
    return min(rows * sampling.max_new_tokens * token_cache_bytes(load), int(sampling.kv_cache_gb * 1e9))


def sampling_bytes(config: RunConfig, load: Load) -> int:
    """Return what the transformers sampler takes beside weights and cache: DRAW_BYTES and a layer of the cache, which
    is copied when rows join or leave.

    Prefilled prompts take 3 x (hidden + FFN) x size a token in one layer, at most PREFILL_TOKENS at a time. The cache
    of their responses is allocated after them, so only what exceeds it counts.
    """
    cache, sizes = cache_bytes(config, load), load.sizes
    tokens = min(max(PREFILL_TOKENS, load.prompt), config.optim.questions_per_step * load.prompt)
    prefill = 3 * (sizes.hidden + sizes.ffn) * load.size * tokens
    return max(DRAW_BYTES + cache // sizes.layers, prefill - cache)


def activation_bytes(sizes: Sizes, size: int, recomputed: bool) -> int:
    """Return the bytes of activations that the text model keeps of one packed token for the backward pass.

    `size` is that of a number in bytes. With `recomputed` a layer keeps only its input, and all activations exist for
    one layer at a time.
    """
    # The input of a norm in fp32, normalised, and scaled.
    norm = sizes.hidden * (4 + 2 * size)
    # Query, key and value as rotated, and the output.
    attention = 2 * size * (sizes.queries + sizes.keys)
    # Of the FFN: the gate, its activation, the up projection, and their product.
    layer = 2 * norm + attention + 4 * size * sizes.ffn
    kept = sizes.layers * sizes.hidden * size + layer if recomputed else sizes.layers * layer
    # The final norm without its scaled output, of which the head copies what it needs.
    return kept + norm - size * sizes.hidden


def _tokens(config: RunConfig, trains: bool) -> dict[str, int]:
    optim, sampling = config.optim, config.sampling
    steps = optim.steps if trains else 0
    rollouts = optim.questions_per_step * sampling.votes.max if trains else 0
    kept = optim.questions_per_step * sampling.train_rollouts if trains else 0
    return {
        "steps": steps,
        "rollouts_per_step": rollouts,
        "tokens_sampled_per_step_at_most": rollouts * sampling.max_new_tokens,
        "response_tokens_trained_per_step_at_most": kept * sampling.max_new_tokens,
    }
