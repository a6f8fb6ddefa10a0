#!/usr/bin/env python3
"""Write docs/config.md from the configuration's own fields, docstrings and defaults.

    python scripts/write_config_docs.py

A test compares the page with what this would write, so that no key goes undocumented.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mm_spine import config
from mm_spine.config import DecodingConfig, RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"

HEAD = """\
# Configuration

Written by `scripts/write_config_docs.py` from `mm_spine/config.py`: change that, then run it again.

A run is one tree of keys. Later wins: the defaults below, the method's own options (`mm-spine methods`), the YAML
file (for a benchmark's name, the one of `configs/`), `--method` and `--seed`, `KEY=VALUE` arguments in their order:

```bash
mm-spine adapt digits --output runs/a --method ttrl --seed 1 optim.steps=24 sampling.votes=32
mm-spine adapt digits --dry-run sampling.backend=vllm evaluation.lmms_eval=[mm_spine_digits_held_out]
```

Values are read as YAML. `method: ttrl` is short for `method: {name: ttrl}`, `votes: 64` for `votes: {max: 64}`. A
wrong key or value is an error, before any model loads, that names the key and the nearest valid one. `--dry-run`
prints the resolved tree; a run saves it as `config.yaml`, which can be given to `mm-spine adapt` again.
"""

RANGES = {
    "Share": "in (0, 1]",
    "Positive": "above 0",
    "NonNegative": "0 or more",
    "Count": "1 or more",
    "Natural": "0 or more",
    "Votes": "2 or more",
    "BelowOne": "in [0, 1)",
    "Budget": "1 or more, or `auto`",
}
"""What the names of config.py's annotated numbers allow."""

MEANINGS = {
    "benchmark": "a name of `mm-spine benchmarks`, or a folder of your own",
    "split": "adapt to this split",
    "source": "read the rows here",
    "prompt": "reason first, or answer at once",
    "model": "which weights, and what of them trains",
    "method": "reward, mask, band, KL",
    "sampling": "rollouts for training",
    "optim": "steps and AdamW",
    "engine": "DeepSpeed, micro-batches, the parity limit",
    "evaluation": "before and after",
    "checkpoint": "where a run can be resumed",
    "cache": "image features",
    "reporting": "what is written and shown",
    "scope": "one model for all questions, or one for each",
    "limit": "the first so many questions",
    "seed": "seeds every draw",
    "threads": "of torch on a CPU",
    "model.path": "a folder or hub id; null: the benchmark's own",
    "model.dtype": "of weights and forward",
    "model.train": "the whole language model, or adapters",
    "model.lora": "with `train: lora`",
    "model.lora.rank": "width of an adapter",
    "model.lora.alpha": "scale: the adapter counts alpha / rank times",
    "model.train_merger": "also train what joins tower and text",
    "model.min_pixels": "smaller images are enlarged to this; null: the processor's",
    "model.max_pixels": "larger images are reduced to this; null: the processor's",
    "method.name": "a row of `mm-spine methods`",
    "method.share": "of the tokens that a mask selects",
    "method.mask_rule": "all at or above the quantile (ties kept), or exactly ceil(share T)",
    "method.mask_scope": "threshold in each response, or over the step",
    "method.band_scope": "bounds in each response, or over the step",
    "method.band_anchor": "bounds of this step, or of the starting model",
    "method.band_quantiles": "of the forks' entropies: lower and upper bound",
    "method.band_low_weight": "of the hinge below the band",
    "method.band_high_weight": "of the hinge above the band",
    "method.advantage": "(r - mean) / (std + eps) in the group or over the step; `center`: r - mean",
    "method.std": "divisor n - 1 (verl, TRL) or n",
    "method.eps": "beside the standard deviation",
    "method.clip_low": "the ratio is clipped at 1 - this",
    "method.clip_high": "the ratio is clipped at 1 + this",
    "method.kl": "to the starting model: none, the k3 estimate, exact over the vocabulary",
    "method.kl_weight": "of that term",
    "method.policy_denominator": "the policy term is divided by all response tokens, or the selected",
    "method.band_denominator": "likewise, the band",
    "method.kl_denominator": "likewise, the KL",
    "method.unanimous": "groups without advantage: left out, or band and KL alone",
    "method.unparsed_penalty": "`rent`: nats for a response without an answer",
    "method.ear": "`ttrl-ear`, `ettrl`: which entropy shaping",
    "decoding.temperature": "of the policy; log-probs and entropies are at it too",
    "decoding.top_p": "nucleus; below 1 in evaluation only",
    "decoding.max_new_tokens": "of a response",
    "decoding.batch_rows": "responses decoded together",
    "decoding.kv_cache_gb": "10^9 bytes, transformers only",
    "sampling.backend": "transformers or vLLM",
    "sampling.votes": "how many vote, and when a vote ends",
    "sampling.votes.max": "rollouts a question at most",
    "sampling.votes.stop": "when a question is asked no further",
    "sampling.votes.level": "of `confident`",
    "sampling.votes.round": "rollouts of each further round",
    "sampling.train_rollouts": "of the votes, how many are trained on",
    "sampling.tree": "tree rollouts; `{}` for the defaults",
    "sampling.tree.forks": "fork tokens of a root",
    "sampling.tree.branches": "responses from each fork",
    "sampling.tree.rank_by": "what forks are chosen by",
    "sampling.tree.distinct": "branches begin with different tokens",
    "sampling.vllm": "with `backend: vllm`",
    "sampling.vllm.tensor_parallel": "GPUs of one engine",
    "sampling.vllm.memory_share": "of a card",
    "sampling.vllm.kv_cache_gb": "2^30 bytes, on a CPU",
    "sampling.vllm.max_rows": "responses decoded at once",
    "sampling.vllm.enforce_eager": "no CUDA graphs",
    "sampling.vllm.own_process": "the engine in a process beside the trainer",
    "optim.steps": "rollout batches",
    "optim.questions_per_step": "questions of a batch",
    "optim.epochs": "optimiser steps a batch",
    "optim.lr": "learning rate after warm-up",
    "optim.schedule": "its decay to 0",
    "optim.warmup": "share of the steps",
    "optim.weight_decay": "AdamW's",
    "optim.betas": "AdamW's",
    "optim.grad_clip": "largest gradient norm; 0: no limit",
    "engine.zero_stage": "what several ranks divide: 1 optimiser, 2 gradients too, 3 a training copy too",
    "engine.token_budget": "packed tokens of a micro-batch",
    "engine.checkpoint_activations": "less memory, a second forward of each layer",
    "engine.deepspeed": "a JSON file of further DeepSpeed settings",
    "engine.parity_limit": "nats; above it the run stops",
    "engine.measure_update": "report how far a step moved the weights",
    "evaluation.samples": "of each question, beside the greedy response",
    "evaluation.held_out": "also the benchmark's held-out split",
    "evaluation.limit": "the first so many questions of each split",
    "evaluation.before": "a finished run with the same start",
    "evaluation.lmms_eval": "tasks",
    "evaluation.lmms_eval_every": "steps",
    "evaluation.lmms_eval_limit": "items of each task",
    "evaluation.lmms_eval_tasks": "a folder of tasks of your own",
    "checkpoint.every": "steps",
    "checkpoint.keep": "the newest so many",
    "cache.memory_gb": "10^9 bytes in host memory",
    "cache.folder": "files that outlive the run",
    "cache.disk_gb": "10^9 bytes in that folder",
    "reporting.images": "thumbnails in the report, images to trackers",
    "reporting.rollouts": "write `rollouts/`",
    "reporting.completions": "responses of a step that are printed",
    "reporting.trackers": "where curves go besides",
    "reporting.tracked_completions": "responses of a step that trackers get",
    "reporting.send_images": "to trackers on another machine",
}
"""What each key is, in a few words; `decoding.*` stand in two sections."""

NUMBERS = {int: "integer", float: "number", bool: "true, false", str: "text", Path: "path"}


def page() -> str:
    """The text of docs/config.md."""
    return "\n".join([HEAD, *(section(name, model) for name, model in sections())])


def sections(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, model) of the tree's sections, the root first, each before those inside it."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if (inner := inner_model(field)) is not None:
            yield from sections(inner, f"{prefix}{name}.")


def inner_model(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, None for a plain value."""
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def section(prefix: str, model: type[BaseModel]) -> str:
    """The heading, the docstring and the table of one section; `prefix` is "" or ends with a dot."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "The root"
    rows = [row(prefix, name, model) for name in model.model_fields]
    table = ["| key | | allowed | default |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {title}\n", *words(model), "", *table, ""])


def words(model: type[BaseModel]) -> list[str]:
    """The docstrings of the section and of what it extends, the general one first."""
    ours = [cls for cls in reversed(model.__mro__) if cls.__module__ == config.__name__ and cls.__doc__]
    return ["\n\n".join(inspect.cleandoc(str(cls.__doc__)) for cls in ours if "__doc__" in vars(cls))]


def meaning(prefix: str, name: str) -> str:
    """What a key is. Raises KeyError for one that `MEANINGS` lacks."""
    shared = name in DecodingConfig.model_fields and prefix in ("sampling.", "evaluation.")
    return MEANINGS[f"decoding.{name}" if shared else prefix + name]


def row(prefix: str, name: str, model: type[BaseModel]) -> str:
    """One line of the table."""
    field = model.model_fields[name]
    if inner_model(field) is not None:
        optional = NoneType in get_args(field.annotation)
        cells = (f"section [below](#{anchor(prefix + name)})", "null" if optional else "")
    else:
        cells = (allowed(model, name), shown(field.default))
    return " | ".join((f"| `{prefix}{name}`", meaning(prefix, name), *cells)) + " |"


def anchor(name: str) -> str:
    """GitHub's anchor of a section's heading."""
    return re.sub(r"[^\w-]", "", name.lower())


def allowed(model: type[BaseModel], name: str) -> str:
    """What the field takes, by the annotation as it is written."""
    written = annotations(model)[name]
    annotation = model.model_fields[name].annotation
    base = written.removesuffix(" | None")
    if base == "Budget":
        return RANGES[base]
    found = f"{NUMBERS[plain(annotation)]} {RANGES[base]}" if base in RANGES else described(plain(annotation), base)
    return found + (", or null" if base != written else "")


def described(annotation: Any, written: str) -> str:
    """Choices spelled out, pairs and lists by their members."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        inside = get_args(annotation)
        if inside[-1] is Ellipsis:
            members = described(inside[0], "")
            return "a list of texts" if members == "text" else f"a list of {members}"
        kind = RANGES[written.removeprefix("tuple[").split(",")[0]]
        return f"two numbers {kind}"
    return NUMBERS[annotation]


def plain(annotation: Any) -> Any:
    """An annotation without Annotated and None around it."""
    if get_origin(annotation) in (Union, UnionType):
        return plain(next(part for part in get_args(annotation) if part is not NoneType))
    return plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def annotations(model: type[BaseModel]) -> dict[str, str]:
    """Field -> its annotation as config.py has it, inherited ones included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls.__module__ == config.__name__:
            (tree,) = ast.parse(inspect.getsource(cls)).body
            assert isinstance(tree, ast.ClassDef)
            found |= {
                node.target.id: ast.unparse(node.annotation)
                for node in tree.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            }
    return found


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"`{value}`" if isinstance(value, str) else str(value)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
