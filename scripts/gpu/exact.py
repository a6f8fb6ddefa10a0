"""Exactness on the device: ours and transformers' plain forward are both compared with plain float64.

The rule of `tests/exactness.py`: ours may be at most three times as far from float64 as the plain forward in the same
dtype is. Log-probs and entropies of selected tokens, the gradient of every trained tensor, and the log-probs that the
sampler gave its own draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
import workload
from exactness import FLOOR, TIMES, InDouble, distance, double_of
from families import SIDE
from tiny import tiny_model, tiny_processor, tiny_questions
from torch import Tensor

from gpu import resume, shapes
from gpu.notes import Notes, Setting, one_line
from mm_spine.config import DecodingConfig, ModelConfig
from mm_spine.draws import generator
from mm_spine.policy import tree_attention
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import Question

TEMPERATURE = 0.7
STEM, TAIL, LEAVES = 12, 8, 4
"""Tokens that the responses of a question share, tokens of their own, and responses."""


class Case(NamedTuple):
    """A model before anything is done to it, and questions with the responses that are scored."""

    name: str
    model: Any
    processor: Any
    config: ModelConfig
    questions: list[Question]
    responses: list[list[Tensor]]


class Inputs(NamedTuple):
    """One row for transformers' own forward: arguments, and the response's tokens and selected places."""

    arguments: dict[str, Tensor]
    tokens_T: Tensor
    at: Tensor


class Values(NamedTuple):
    """Log-probs and entropies of the selected tokens in one row, and the gradient by name in transformers' model."""

    values: Tensor
    gradients: dict[str, Tensor]


def measure(setting: Setting) -> None:
    """Compare every case, then a run that was stopped and resumed with one that was not."""
    slice_ = shapes.in_words(shapes.slice_of_3b(setting.rehearsal, "float32"))
    setting.notes.say(
        f"Slice of Qwen2.5-VL-3B: {slice_} or bfloat16, with its tower's last layer. Responses share a stem. Plain: "
        "transformers' forward in the same dtype, a row per response."
    )
    for name, dtype in cases(setting.rehearsal):
        case = make_case(name, dtype, setting.device, setting.rehearsal)
        compare_case(case, dtype, setting)
        del case
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
    for dtype in DTYPES:
        resume.compare(setting, dtype)


def cases(rehearsal: bool) -> list[tuple[str, str]]:
    """Return (model, dtype), the largest model first: what is cut off by the end of time is worth least."""
    names = ("2 layers of Qwen2.5-VL-3B", "tiny qwen2_5_vl", "tiny qwen3_vl")
    return [(name, dtype) for name in names for dtype in ("bfloat16", "float32")]


def make_case(name: str, dtype: str, device: torch.device, rehearsal: bool) -> Case:
    """Build the model and its questions; of a tiny model two, with one image and with two."""
    kind = name.partition("tiny ")[2]
    limits: dict[str, Any] = {}
    if kind:
        model, processor = tiny_model(3, False, kind), tiny_processor(kind)
        questions = [tiny_questions(i + 1, i + 1, SIDE.get(kind, 28))[i] for i in range(2)]
    else:
        sizes = shapes.slice_of_3b(rehearsal, dtype)
        model, processor = shapes.make_model(sizes, device), workload.make_processor()
        questions = workload.make_questions(sizes)
        limits = {"min_pixels": workload.TOKEN_PIXELS**2, "max_pixels": workload.MOST_PIXELS}
    model = model.to(device, DTYPES[dtype]).eval()
    config = ModelConfig.model_validate({"dtype": dtype, **limits})
    vocab = min(model.get_input_embeddings().num_embeddings, 10**6)
    return Case(name, model, processor, config, questions, [make_responses(q, vocab) for q in questions])


def make_responses(question: Question, vocab: int) -> list[Tensor]:
    """Draw responses that share a stem: a token tree, with the same tokens for the same question and vocabulary."""
    rng = generator(0, "gpu-check", question.id)
    # Neither end token nor vision specials, in the shipped tokenizer.
    ids = np.concatenate([np.arange(410), np.arange(423, vocab)])
    stem = rng.choice(ids, STEM)
    return [torch.from_numpy(np.concatenate([stem, rng.choice(ids, TAIL + i)])) for i in range(LEAVES)]


def compare_case(case: Case, dtype: str, setting: Setting) -> None:
    """Write down how far ours and the plain forward are from float64, by attention kernel, and the sampler's gap."""
    plain = deepcopy(case.model)
    policy = Policy(case.model, case.processor, case.config)
    rows = list(plain_rows(policy, case, setting.device))
    exact_model = double_of(plain)
    its = plain_values(plain, rows, policy)
    with InDouble():
        exact = plain_values(exact_model, rows, policy)
    for kernel in (None, "plain"):
        shown = kernel or tree_attention.backend_name(setting.device, DTYPES[dtype], head_width(policy))
        try:
            with kernel_of(kernel):
                found = our_values(policy, case)
        except Exception as error:
            # Another kernel may still be right.
            setting.notes.problem(f"{case.name}, {dtype}, kernel {shown}: {one_line(error)}")
            continue
        note_comparison(setting.notes, f"{case.name}, {dtype}, {shown}", found, its, exact)
    compare_sampler(case, policy, (plain, exact_model), setting, dtype)


def head_width(policy: Policy) -> int:
    """Return the numbers of one head's query."""
    return int(policy.text.language_model.layers[0].self_attn.head_dim)


@contextmanager
def kernel_of(name: str | None) -> Iterator[None]:
    """Compute attention over token trees with this kernel; with None, with the device's own."""
    usual = tree_attention.backend_name
    if name is not None:
        tree_attention.backend_name = lambda device, dtype, width: name
    try:
        yield
    finally:
        tree_attention.backend_name = usual


def selected(response: Tensor) -> Tensor:
    """Return which tokens are trained: the first, the last, and every third between."""
    mask = torch.arange(len(response)) % 3 == 0
    mask[-1] = True
    return mask


def plain_rows(policy: Policy, case: Case, device: torch.device) -> Iterator[Inputs]:
    """Yield a row per response; every row has its question's pixels again."""
    for question, responses in zip(case.questions, case.responses, strict=True):
        for response in responses:
            arguments = row_arguments(policy, question, response, device)
            yield Inputs(arguments, response.to(device), selected(response).nonzero()[:, 0].to(device))


def row_arguments(policy: Policy, question: Question, response: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Return what transformers' forward takes for a prompt and a response."""
    limits = policy.config.min_pixels, policy.config.max_pixels
    encoded = policy.family.encode(question, policy.processor, *limits)
    ids = torch.cat([encoded.ids_L, response])[None]
    types = torch.cat([encoded.types_L, torch.zeros_like(response)])[None]
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "mm_token_type_ids": types.to(device),
        "pixel_values": torch.cat([image.pixel_values for image in encoded.images]).to(device),
        "image_grid_thw": torch.stack([image.grid_thw for image in encoded.images]).to(device),
    }


def log_probs_of(model: Any, row: Inputs, banned: Sequence[int], temperature: float) -> Tensor:
    """Return log pi (T, V) of a row's response by the plain forward: no packing, no cache, no selection."""
    dtype = model.get_input_embeddings().weight.dtype
    arguments = row.arguments | {"pixel_values": row.arguments["pixel_values"].to(dtype)}
    length = len(row.tokens_T)
    logits = model(**arguments, use_cache=False, logits_to_keep=length + 1).logits[0, :-1].float() / temperature
    return logits.index_fill(-1, torch.tensor(banned, device=logits.device), -torch.inf).log_softmax(-1)


def values_of(log_probs_TV: Tensor, row: Inputs) -> Tensor:
    """Return log-probs and entropies (nats) of the selected tokens, one after the other."""
    chosen = log_probs_TV.index_select(0, row.at)
    logp = chosen.gather(-1, row.tokens_T[row.at][:, None])[:, 0]
    entropy = -(chosen.exp() * chosen.masked_fill(chosen.isinf(), 0.0)).sum(-1)
    return torch.cat([logp, entropy])


def weights_for(count: int, index: int, like: Tensor) -> Tensor:
    """Return the factors of a row's values in the loss, equal for equal rows."""
    random = torch.Generator().manual_seed(index)
    return torch.randn(count, generator=random).to(like)


def plain_values(model: Any, rows: Sequence[Inputs], policy: Policy) -> Values:
    """Return values and gradients of a loss over all rows; a row's graph is freed before the next."""
    found = []
    for index, row in enumerate(rows):
        values = values_of(log_probs_of(model, row, policy.banned, TEMPERATURE), row)
        (weights_for(len(values), index, values) * values).sum().backward()
        found.append(values.detach())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Values(torch.cat(found), gradients)


def our_values(policy: Policy, case: Case) -> Values:
    """Return the same by one packed row of token trees."""
    # Token trees are made on the CPU; `pack` puts the row on the device.
    branches = [
        Branches(policy.prompt(question), responses, [selected(response) for response in responses])
        for question, responses in zip(case.questions, case.responses, strict=True)
    ]
    stats = policy.text(pack(branches), Distribution(TEMPERATURE, policy.banned)).stats
    rows = []
    loss = stats.logp_NT.new_zeros(())
    for index, mask_T in enumerate(stats.selected_NT):
        values = torch.cat([stats.logp_NT[index][mask_T], stats.entropy_NT[index][mask_T]])
        loss = loss + (weights_for(len(values), index, values) * values).sum()
        rows.append(values.detach())
    named = policy.trainable()
    known = {id(p): name for name, p in policy.model.named_parameters()}
    found = torch.autograd.grad(loss, list(named.values()))
    return Values(torch.cat(rows), {known[id(p)]: g for p, g in zip(named.values(), found, strict=True)})


def note_comparison(notes: Notes, name: str, ours: Values, its: Values, exact: Values) -> None:
    """Write down the errors and whether the rule holds."""
    off, plain_off = (distance(each.values, exact.values) for each in (ours, its))
    errors = {key: (error(ours, exact, key), error(its, exact, key)) for key in ours.gradients}
    times, where = max((own / max(plain, FLOOR), key) for key, (own, plain) in errors.items())
    fine = off <= limit_of(its.values, exact.values) and times <= TIMES
    notes.row(
        "Packed forward and gradients: largest distance to float64",
        case=name,
        **{
            "log-probs and entropies, ours": off,
            "log-probs and entropies, plain": plain_off,
            "gradients relative to their norms, ours": max(own for own, _ in errors.values()),
            "gradients, plain": max(plain for _, plain in errors.values()),
            "gradients, ours / plain in the worst tensor": times,
            "within 3 x plain": fine,
        },
    )
    if not fine:
        notes.problem(f"{name}: further from float64 than 3 times the plain forward (worst gradient: {where})")


def limit_of(its: Tensor, exact: Tensor) -> float:
    """Return how far ours may be from float64, by the rule of `tests/exactness.py`."""
    return max(TIMES * distance(its, exact), FLOOR * max(1.0, float(exact.abs().max())))


def error(found: Values, exact: Values, name: str) -> float:
    """Return ||g - g_exact|| / ||g_exact|| of one tensor, infinite for a NaN or where the exact one vanishes."""
    wanted = exact.gradients[name].double()
    off = float((found.gradients[name].double() - wanted).norm() / wanted.norm())
    return off if off == off else float("inf")


@torch.no_grad()
def compare_sampler(case: Case, policy: Policy, models: tuple[Any, Any], setting: Setting, dtype: str) -> None:
    """Compare the sampler's log-probs of its own draws with those of the plain forward of the same tokens."""
    plain, exact_model = models
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=STEM))
    drawn = sampler.sample(case.questions, LEAVES, step=0, purpose="gpu-check")
    own: list[Tensor] = []
    its: list[Tensor] = []
    exact: list[Tensor] = []
    for question, group in zip(case.questions, drawn, strict=True):
        for rollout in group:
            response = torch.tensor(rollout.token_ids)
            row = Inputs(row_arguments(policy, question, response, setting.device), response.to(setting.device),
                         torch.arange(len(response), device=setting.device))  # fmt: skip
            its.append(values_of(log_probs_of(plain, row, policy.banned, 1.0), row)[: len(response)])
            with InDouble():
                exact.append(values_of(log_probs_of(exact_model, row, policy.banned, 1.0), row)[: len(response)])
            own.append(torch.from_numpy(rollout.logp).to(setting.device))
    ours, plainly, wanted = torch.cat(own), torch.cat(its), torch.cat(exact)
    fine = distance(ours, wanted) <= limit_of(plainly, wanted)
    setting.notes.row(
        "Sampler: largest distance of a drawn token's log-prob to float64",
        case=f"{case.name}, {dtype}",
        tokens=len(ours),
        **{"sampler": distance(ours, wanted), "plain": distance(plainly, wanted), "within 3 x plain": fine},
    )
    if not fine:
        setting.notes.problem(f"{case.name}, {dtype}: the sampler's log-probs are further off than 3 times plain ones")
