"""Write the settings of a run as a LaTeX paragraph, for the experimental part of a paper.

Every number comes from config.yaml, and every text is escaped. What a method does not use is not stated: the band and
the selection of tokens are stated where steps.jsonl shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm_spine.reporting.latex import escape
from mm_spine.reporting.saved_run import Json, SavedRun, last_part, number, section, values_by_step


def settings_paragraph(saved: SavedRun) -> str:
    """Return the paragraph; a setting that config.yaml lacks is left out."""
    config = saved.config
    parts = (_data(saved), _method(saved), _sampling(config), _optimiser(config), _evaluation(config), _code(saved))
    sentences = (sentence for part in parts for sentence in part)
    head = "% Settings of this run, from config.yaml, summary.json, steps.jsonl and environment.json.\n"
    return head + "\n".join(sentences) + "\n"


def figure(value: object) -> str:
    """Return a number as LaTeX: small and large ones as a product with a power of ten."""
    known = number(value)
    if known is None:
        return escape(str(value))
    if known == 0 or 1e-3 <= abs(known) < 1e9:
        return f"{known:.10g}" if abs(known) < 1e4 else f"{known:,.10g}".replace(",", "{,}")
    digits, _, power = f"{known:.10e}".partition("e")
    mantissa = f"{float(digits):.6g}"
    factor = "" if mantissa == "1" else rf"{mantissa} \times "
    return rf"${factor}10^{{{int(power)}}}$"


def _at(tree: Json, *names: str) -> Any:
    """Return the value at a path of keys, None where there is none."""
    found: Any = tree
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _data(saved: SavedRun) -> Iterator[str]:
    config, summary = saved.config, saved.summary
    model = summary.get("model") or _at(config, "model", "path") or "the benchmark's own model"
    questions = number(summary.get("n_questions"))
    asked = f"{figure(questions)} questions" if questions else "questions"
    labels = "without their answers" if summary.get("label_free", True) else "WITH their answers (a control)"
    yield (
        rf"We adapt {_code_text(last_part(str(model)))} to the {asked} of {_code_text(saved.benchmark)} {labels}, "
        f"with the method {_code_text(saved.name)} of mm-spine."
    )
    train = _at(config, "model", "train")
    if train == "lora":
        lora = (
            f"rank {figure(_at(config, 'model', 'lora', 'rank'))}, $\\alpha = {_at(config, 'model', 'lora', 'alpha')}$"
        )
        what = f"low-rank adapters ({lora}) of the language model"
    else:
        what = "all weights of the language model"
    merger = ", and those of the merger" if _at(config, "model", "train_merger") is True else ""
    precision = _at(config, "model", "dtype")
    typed = f", in {escape(str(precision))}" if precision else ""
    yield f"We train {what}{merger}; the vision tower stays frozen{typed}."
    pixels = [(word, _at(config, "model", f"{word}_pixels")) for word in ("min", "max")]
    if known := [f"{'at least' if word == 'min' else 'at most'} {figure(value)}" for word, value in pixels if value]:
        yield f"Images have {' and '.join(known)} pixels."


def _method(saved: SavedRun) -> Iterator[str]:
    method, steps = section(saved.config, "method"), saved.steps
    if not steps:
        return
    shares = [share for _, share in values_by_step(steps, "selected_share")]
    if shares and min(shares) < 0.9995:
        mean = sum(shares) / len(shares)
        yield rf"The policy term acts on {100 * mean:.1f}\,\% of the response tokens (mean over the steps)."
    if "advantage" in method:
        over = {"group": "within the group", "batch": "over the step", "center": "within the group, without division"}
        yield f"Advantages are normalised {over.get(method['advantage'], escape(str(method['advantage'])))}."
    if "clip_low" in method and "clip_high" in method:
        yield f"Importance ratios are clipped at $1 - {method['clip_low']}$ and $1 + {method['clip_high']}$."
    if values_by_step(steps, "band_low"):
        weights = [figure(method.get(f"band_{side}_weight")) for side in ("low", "high")]
        yield f"The entropy band has weights {weights[0]} below and {weights[1]} above it."
    if method.get("kl") not in (None, "none"):
        yield (
            f"The KL term ({escape(str(method['kl']))}) to the starting model has weight "
            f"{figure(method.get('kl_weight'))}."
        )
    changed = saved.summary.get("method_changes")
    if isinstance(changed, Sequence) and not isinstance(changed, str) and changed:
        yield f"Options that differ from the method's own: {_code_text('; '.join(map(str, changed)))}."


def _sampling(config: Json) -> Iterator[str]:
    sampling = section(config, "sampling")
    votes = _at(sampling, "votes", "max") or sampling.get("votes")
    if number(votes) is None:
        return
    stop = _at(sampling, "votes", "stop")
    most = "" if stop in (None, "never") else "at most "
    yield (
        f"For each question {most}{figure(votes)} responses of at most {figure(sampling.get('max_new_tokens'))} tokens "
        f"are sampled at temperature {figure(sampling.get('temperature'))} and vote; the first "
        f"{figure(sampling.get('train_rollouts'))} are trained on."
    )
    tree = sampling.get("tree")
    if isinstance(tree, Mapping):
        yield (
            f"Responses are drawn as trees: {figure(tree.get('branches'))} branches at each of "
            f"{figure(tree.get('forks'))} tokens of a root, ranked by {escape(str(tree.get('rank_by')))}."
        )


def _optimiser(config: Json) -> Iterator[str]:
    optim = section(config, "optim")
    if "lr" not in optim:
        return
    each = "optimiser step" if optim.get("epochs") == 1 else "optimiser steps"
    yield (
        f"We take {figure(optim.get('steps'))} steps of {figure(optim.get('questions_per_step'))} questions, "
        f"{figure(optim.get('epochs'))} {each} each, with AdamW: learning rate {figure(optim['lr'])} "
        f"({escape(str(optim.get('schedule')))} schedule, warm-up over {figure(optim.get('warmup'))} of the steps), "
        f"betas {' and '.join(map(figure, optim.get('betas') or ()))}, weight decay "
        f"{figure(optim.get('weight_decay'))}, gradient norm at most {figure(optim.get('grad_clip'))}."
    )
    if config.get("scope") == "question":
        yield "The model is adapted to each question separately, from the same weights."


def _evaluation(config: Json) -> Iterator[str]:
    evaluation = section(config, "evaluation")
    if "samples" not in evaluation:
        return
    limit = evaluation.get("limit")
    first = f" on the first {figure(limit)} questions of each split" if limit else ""
    yield (
        f"We evaluate before and after{first} with one greedy response and {figure(evaluation['samples'])} samples "
        f"(temperature {figure(evaluation.get('temperature'))}, top-p {figure(evaluation.get('top_p'))}, at most "
        f"{figure(evaluation.get('max_new_tokens'))} tokens), with 95\\,\\% bootstrap intervals over questions."
    )


def _code(saved: SavedRun) -> Iterator[str]:
    packages = section(saved.environment, "packages")
    named = [f"{name} {packages[name]}" for name in ("mm-spine", "torch", "transformers", "vllm") if packages.get(name)]
    seed = f"The seed is {figure(saved.config['seed'])}" if "seed" in saved.config else ""
    if named and seed:
        yield f"{seed}; versions: {escape(', '.join(named))}."
    elif seed:
        yield f"{seed}."


def _code_text(text: object) -> str:
    return rf"\texttt{{{escape(str(text))}}}"
