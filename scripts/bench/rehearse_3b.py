r"""A rehearsal at the size of Qwen2.5-VL-3B on a CPU: load, one LoRA step, save, reload, merge, save.

    python scripts/bench/rehearse_3b.py FOLDER [--layers 36 --depth 32 --image-tokens 256 --rollouts 4
        --response-tokens 16 --seed 0] [--keep] [--json FILE]

Writes random bfloat16 weights with exactly the shapes of Qwen/Qwen2.5-VL-3B-Instruct to FOLDER/model, as shards of at
most 1 GB, and removes what it wrote at the end (7.5 GB, and as much again for the merged model). Tokenizer, processor
and chat template are those of the shipped digits model: its 423 tokens stand for the first rows of the vocabulary of
151,936, and it is not Qwen's tokenizer. So the text of the responses means nothing; memory and time are those of the
real model. Each part runs in a process of its own. Needs 14 GB of free memory and 16 GB of disk. Seconds, processor
seconds and the highest resident memory of each phase are printed beside the estimate of `mm-spine adapt --dry-run
--card`, for a prompt of this length.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from mm_spine.adapt import Hooks, adapt
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands import card
from mm_spine.commands.estimate import describe, load_of
from mm_spine.config import RunConfig
from mm_spine.methods.table import configure
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.folder import INDEX, check_model_folder
from mm_spine.policy.model import Policy, checksum
from mm_spine.policy.scoring import score_responses
from mm_spine.runs.fingerprint import starting_weights
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import AnswerSpec, Question

SHARD_BYTES = 10**9
# Of config.json of Qwen/Qwen2.5-VL-3B-Instruct. The token ids are those of the digits model's tokenizer.
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
QWEN_PIXELS = {"shortest_edge": 3136, "longest_edge": 12_845_056}


class Phase(NamedTuple):
    """A phase: seconds by the clock and of the processor, highest and final resident memory in bytes."""

    name: str
    seconds: float
    processor_seconds: float
    peak: int
    held: int


class Phases:
    """The phases so far."""

    def __init__(self) -> None:
        self.done: list[Phase] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the block."""
        gc.collect()
        # The kernel sets the highest resident size back to the present one.
        Path("/proc/self/clear_refs").write_text("5")
        started, processor = time.perf_counter(), time.process_time()
        yield
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        self.done.append(Phase(name, seconds, processor, resident("VmHWM"), resident("VmRSS")))
        print(f"{name}: {seconds:.1f} s, {self.done[-1].peak / 1e9:.2f} GB", flush=True)


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def model_config(layers: int, depth: int) -> Any:
    """Return the configuration of the 3B model, with as many layers in text model and tower as asked for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODEL_DIR)
    text, vision = config.text_config, config.vision_config
    for name, value in TEXT.items():
        setattr(text, name, value)
    for name, value in VISION.items():
        setattr(vision, name, value)
    text.num_hidden_layers, vision.depth = layers, depth
    text.layer_types = ["full_attention"] * layers
    vision.fullatt_block_indexes = [at for at in (7, 15, 23, 31) if at < depth]
    config.tie_word_embeddings = True
    return config


def write_model(folder: Path, config: Any, seed: int) -> int:
    """Write random weights shard by shard, and the files beside them. Returns the number of parameters."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(MODEL_DIR)
    processor.image_processor.size = QWEN_PIXELS
    processor.save_pretrained(folder)
    GenerationConfig.from_pretrained(MODEL_DIR).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    noise = torch.Generator().manual_seed(seed)
    shards: list[dict[str, Any]] = [{}]
    for name, parameter in model.named_parameters():
        if sum(tensor.nbytes for tensor in shards[-1].values()) + parameter.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][stored_name(name)] = parameter
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file({name: drawn(name, p.shape, noise) for name, p in shard.items()}, folder / file, {"format": "pt"})
    index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(p.nbytes for shard in shards for p in shard.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    return total // 2


def stored_name(name: str) -> str:
    """Return the name of a parameter in the published files."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def drawn(name: str, shape: torch.Size, noise: torch.Generator) -> torch.Tensor:
    """Return normal weights of deviation 0.02, or ones for a norm."""
    if "norm" in name or "ln_q" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.randn(shape, generator=noise, dtype=torch.bfloat16).mul_(0.02)


def question(tokens: int) -> Question:
    """Return a question with a square image of noise of about `tokens` image tokens."""
    side = 28 * round(tokens**0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Question("rehearsal", (Image.fromarray(pixels),), "Which digit is it?", AnswerSpec(kind="integer"))


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """Return the settings: one step on one question, LoRA, bfloat16."""
    return configure(
        {
            "model": {"path": str(arguments.folder / "model"), "dtype": "bfloat16", "train": "lora"},
            # The responses hold no answer, so no vote has a winner: every token is kept in the band, which has a
            # gradient of the same size as the policy term.
            "method": {"name": "spine", "share": 1.0},
            "sampling": {
                "votes": arguments.rollouts,
                "train_rollouts": arguments.rollouts,
                "max_new_tokens": arguments.response_tokens,
            },
            "optim": {"steps": 1, "questions_per_step": 1, "lr": 1e-4},
            "seed": arguments.seed,
        }
    )


def write(arguments: argparse.Namespace, phases: Phases) -> dict[str, Any]:
    """Write the model folder."""
    with phases.timed("write the model folder"):
        config = model_config(arguments.layers, arguments.depth)
        return {"parameters": write_model(arguments.folder / "model", config, arguments.seed)}


def step(arguments: argparse.Namespace, phases: Phases) -> dict[str, Any]:
    """Load, take one step, write its checkpoint."""
    folder, config = arguments.folder / "model", run_config(arguments)
    asked, records = question(arguments.image_tokens), []
    with phases.timed("check the folder"):
        check_model_folder(folder)
    with phases.timed("load"):
        policy = Policy.load(folder, config.model, config.seed)
    with phases.timed("checksums"):
        starting_weights(policy)
        found: dict[str, Any] = {"tower": policy.tower_checksum()}
    with phases.timed("read image and prompt"):
        prompt = policy.prompt(asked)
    found["prompt_tokens"], found["image_tokens"] = len(prompt.ids_L), len(prompt.image_at_I)
    with phases.timed("one step and its checkpoint"):
        hooks = Hooks(on_step=records.append, checkpoints=arguments.folder / "checkpoints")
        adapt([asked], policy, make_sampler(policy, config), config=config, hooks=hooks)
    found["seconds"], found["report"] = records[0].seconds, vars(records[0].report)
    found["responses"] = [rollout.token_ids for rollout in records[0].groups[0].rollouts]
    found["packed_tokens"] = len(prompt.ids_L) + sum(map(len, found["responses"]))
    found["weights"] = digest(policy)
    found["estimate"] = expected(config, folder, found["prompt_tokens"])
    return found


def save(arguments: argparse.Namespace, phases: Phases, responses: Any) -> dict[str, Any]:
    """Load again, go on from the checkpoint, merge and save."""
    config, asked = run_config(arguments), question(arguments.image_tokens)
    with phases.timed("load again"):
        policy = Policy.load(arguments.folder / "model", config.model, config.seed)
    with phases.timed("go on from the checkpoint"):
        hooks = Hooks(checkpoints=arguments.folder / "checkpoints", resume=True)
        adapt([asked], policy, make_sampler(policy, config), config=config, hooks=hooks)
    found: dict[str, Any] = {"weights": digest(policy), "tower": policy.tower_checksum()}
    with phases.timed("score the responses"):
        found["scores"] = scores(policy, config, asked, responses)
    with phases.timed("merge and save"):
        policy.save(arguments.folder / "adapted")
    return found


def load_merged(arguments: argparse.Namespace, phases: Phases, responses: Any) -> dict[str, Any]:
    """Load the merged model and score with it."""
    config, asked = run_config(arguments), question(arguments.image_tokens)
    with phases.timed("load the merged model"):
        policy = Policy.load(arguments.folder / "adapted", config.model, config.seed)
    with phases.timed("score with it"):
        return {"scores": scores(policy, config, asked, responses)}


def digest(policy: Policy) -> str:
    """Return a checksum of the trainable weights."""
    return checksum(policy.trainable().items())


def scores(policy: Policy, config: RunConfig, asked: Question, responses: Any) -> list[Any]:
    """Return the log-probs of the responses."""
    distribution = Distribution(config.sampling.temperature, policy.banned)
    return [scored.logp for scored in score_responses(policy, [(asked, responses)], distribution)[0]]


def in_a_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a part in a process of its own, as a user would; add its phases and its memory after the imports."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_part, (work, *arguments))


def _part(work: Callable[..., dict[str, Any]], arguments: argparse.Namespace, *more: Any) -> dict[str, Any]:
    phases, imported = Phases(), resident("VmRSS")
    return {**work(arguments, phases, *more), "phases": phases.done, "imported": imported}


def rehearse(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take all parts in turn. Returns what was found."""
    written = in_a_process(write, arguments)
    stepped = in_a_process(step, arguments)
    saved = in_a_process(save, arguments, stepped["responses"])
    merged = in_a_process(load_merged, arguments, stepped["responses"])
    gaps = [float(np.abs(a - b).max()) for a, b in zip(saved["scores"], merged["scores"], strict=True)]
    phases = [phase for part in (written, stepped, saved, merged) for phase in part["phases"]]
    return {
        "parameters": written["parameters"],
        "imported": stepped["imported"],
        **{name: stepped[name] for name in ("prompt_tokens", "image_tokens", "packed_tokens", "seconds", "report")},
        "estimate": stepped["estimate"],
        "resumed_to_the_bit": stepped["weights"] == saved["weights"],
        "tower_unchanged": stepped["tower"] == saved["tower"],
        "merged_gap_nats": max(gaps),
        "beside_estimate": beside_estimate(phases, stepped["estimate"], stepped["imported"]),
        "phases": phases,
    }


def expected(config: RunConfig, folder: Path, prompt_tokens: int) -> card.Phases:
    """Return the estimate, phase -> part -> bytes, for a prompt of this many tokens."""
    load = load_of(config, describe(folder))._replace(prompt=prompt_tokens)
    # The card matters only for vLLM's share of it.
    return card.phases(config, load, card.find_card("h100-80"))


ESTIMATED = {"one step and its checkpoint": ("sample", "backward", "step"), "merge and save": ("save",)}
"""Measured phase -> phases of the estimate, which follow each other in it."""


def beside_estimate(phases: Sequence[Phase], estimate: card.Phases, imported: int) -> dict[str, dict[str, float]]:
    """Return by measured phase: highest resident memory, the estimate with what the imports take, and their ratio."""
    found = {}
    for phase in phases:
        if phase.name in ESTIMATED:
            most = imported + max(sum(estimate[name].values()) for name in ESTIMATED[phase.name])
            found[phase.name] = {"measured": phase.peak, "estimated": most, "ratio": most / phase.peak}
    return found


def report(found: Mapping[str, Any]) -> None:
    """Print the table of phases, and peak against estimate."""
    table = Table("phase", "seconds", "processor seconds", "highest resident GB", "resident at its end GB")
    for phase in found["phases"]:
        seconds = f"{phase.seconds:.1f}", f"{phase.processor_seconds:.1f}"
        table.add_row(phase.name, *seconds, f"{phase.peak / 1e9:.2f}", f"{phase.held / 1e9:.2f}")
    console = Console(width=120)
    console.print(table)
    parts = dict.fromkeys(part for phase in found["estimate"].values() for part in phase)
    table = Table("estimate, GB", *found["estimate"])
    for part in parts:
        table.add_row(part, *(f"{phase.get(part, 0) / 1e9:.2f}" for phase in found["estimate"].values()))
    console.print(table)
    console.print(f"after the imports alone {found['imported'] / 1e9:.2f} GB")
    for name, each in found["beside_estimate"].items():
        console.print(
            f"{name}: at most {each['measured'] / 1e9:.2f} GB, estimated {each['estimated'] / 1e9:.2f} GB with the "
            f"imports: {each['ratio']:.3f}"
        )


def main() -> None:
    """Rehearse, and remove the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in {
        "layers": 36,
        "depth": 32,
        "image-tokens": 256,
        "rollouts": 4,
        "response-tokens": 16,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", action="store_true", help="leave the folders")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists: name a new folder")
    try:
        found = rehearse(arguments)
        report(found)
        print(json.dumps({key: value for key, value in found.items() if key != "phases"}))
        if arguments.json is not None:
            phases = [phase._asdict() for phase in found["phases"]]
            figures = {**found, "phases": phases, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
            arguments.json.write_text(json.dumps(figures, indent=1))
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
