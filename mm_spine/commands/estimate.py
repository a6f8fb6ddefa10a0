"""Estimate what a run takes, by arithmetic, without loading a model (`mm-spine adapt --dry-run`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from mm_spine.config import LoraConfig, RunConfig
from mm_spine.methods.table import find
from mm_spine.policy.families import FAMILIES

_BYTES = {"float32": 4, "bfloat16": 2}

# Bytes per trained parameter: AdamW's two fp32 moments, and an fp32 copy of the weight.
_MOMENTS, _MASTER = 8, 4


class Sizes(NamedTuple):
    """Sizes of the text model: layers, widths of hidden state, queries (heads x head size), keys, FFN; vocabulary."""

    layers: int
    hidden: int
    queries: int
    keys: int
    ffn: int
    vocabulary: int


def read_sizes(folder: Path) -> Sizes:
    """Read the sizes from config.json: from its `text_config`, or in older files from the top level."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    # Qwen3's heads need not add up to the hidden width.
    head = text.get("head_dim") or hidden // heads
    keys = text.get("num_key_value_heads", heads) * head
    vocabulary = text.get("vocab_size", config.get("vocab_size"))
    return Sizes(text["num_hidden_layers"], hidden, heads * head, keys, text["intermediate_size"], vocabulary)


def count_parameters(folder: Path) -> dict[str, int]:
    """Count the parameters of the tower, its mergers and the text model from the safetensors headers."""
    counts = {"tower": 0, "merger": 0, "text": 0}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                counts[_part(name)] += math.prod(tensors.get_slice(name).get_shape())
    return counts


def _part(name: str) -> str:
    """Return the part of the model that a tensor of this name belongs to, in any family."""
    _, visual, inside = name.partition("visual.")
    mergers = {merger for family in FAMILIES.values() for merger in family.mergers}
    return "text" if not visual else "merger" if inside.split(".")[0] in mergers else "tower"


def count_adapter(sizes: Sizes, lora: LoraConfig) -> int:
    """Count LoRA's parameters: rank x (inputs + outputs) of q, k, v, o, gate, up and down in every layer."""
    attention = 2 * (sizes.hidden + sizes.queries) + 2 * (sizes.hidden + sizes.keys)
    return lora.rank * sizes.layers * (attention + 3 * (sizes.hidden + sizes.ffn))


def estimate(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return parameters, bytes, and tokens per step at most, for one process.

    `bytes_cache_of_responses` is the sampler's cache without prompts, which share its limit `sampling.kv_cache_gb`.
    vLLM holds weights of its own; on a card its cache is what they leave of `sampling.vllm.memory_share`.
    `bytes_activations_per_packed_token` is for each packed token of a micro-batch; the head's activations are not
    counted. ZeRO divides gradients and optimiser state among processes. `bytes_reference` is the KL anchor's copy of
    the starting weights.
    """
    counts, sizes = count_parameters(folder), read_sizes(folder)
    full, trains = config.model.train == "full", find(config.method.name).trains
    adapter = 0 if full else count_adapter(sizes, config.model.lora)
    merger = counts["merger"] if config.model.train_merger else 0
    trained = (counts["text"] if full else adapter) + merger if trains else 0
    frozen = sum(counts.values()) + adapter - trained
    return {
        "parameters_trainable": trained,
        "parameters_frozen": frozen,
        "parameters_tower_and_merger": counts["tower"] + counts["merger"],
        **_bytes(config, sizes, trained, frozen, counts["text"] + adapter + merger),
        **_tokens(config, trains),
    }


def _bytes(config: RunConfig, sizes: Sizes, trained: int, frozen: int, text: int) -> dict[str, int]:
    size, stage = _BYTES[config.model.dtype], config.engine.zero_stage
    # DeepSpeed keeps the fp32 copy for bf16 weights, and for any weights where a ZeRO stage flattens them.
    master = _MASTER if size == 2 or stage > 0 else 0
    anchored = trained and config.method.kl != "none"
    return {
        "bytes_weights": (trained + frozen) * size,
        "bytes_zero3_copy": text * size if trained and stage == 3 and config.engine.keep_whole else 0,
        "bytes_gradients": trained * size,
        "bytes_optimizer": trained * (_MOMENTS + master),
        "bytes_reference": trained * size if anchored else 0,
        "bytes_sampler_weights": text * size if trained and config.sampling.backend == "vllm" else 0,
        "bytes_cache_of_responses": _cache_bytes(config, sizes.layers * 2 * sizes.keys * size) if trained else 0,
        "bytes_activations_per_packed_token": (
            activation_bytes(sizes, size, config.engine.checkpoint_activations) if trained else 0
        ),
    }


def _cache_bytes(config: RunConfig, token_bytes: int) -> int:
    """Return the bytes of keys and values of responses while sampling, at most."""
    sampling = config.sampling
    # vLLM allocates its whole cache at the start; our own grows up to its limit.
    if sampling.backend == "vllm":
        return sampling.vllm.kv_cache_gb * 2**30
    rows = min(sampling.batch_rows, config.optim.questions_per_step * sampling.votes.max)
    return min(rows * sampling.max_new_tokens * token_bytes, int(sampling.kv_cache_gb * 1e9))


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
