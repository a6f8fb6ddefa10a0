"""The model card of an adapted model: the README.md of `adapted/`, as the hub reads it.

It holds figures, settings and digests. No question, answer, image, file name or path of the data or the machine is in
it, because a card is made to be published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mm_spine import files
from mm_spine.benchmarks import BENCHMARKS
from mm_spine.compat import version_of
from mm_spine.config import RunConfig
from mm_spine.config.layers import read_config
from mm_spine.evaluation import Metrics
from mm_spine.evaluation.answer_table import AnswerChanges
from mm_spine.files import fingerprint
from mm_spine.methods.method import Method
from mm_spine.methods.table import changed_lines, configure
from mm_spine.policy.errors import ModelError
from mm_spine.policy.folder import locate_model
from mm_spine.policy.hub import CARD
from mm_spine.policy.model import Policy
from mm_spine.types import Question

MEASURES = {
    "greedy": "one greedy answer",
    "pass_at_1": "one sampled answer (pass@1)",
    "maj_at_n": "the vote over the samples (maj@N)",
}
"""Key of the metrics -> its row in the card."""

SPLITS = {"adapted": "the questions it was adapted to", "held_out": "held-out questions"}

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

PLAIN = re.compile(r"[\w.+-]{1,60}")
"""What a licence's name looks like: the front matter of a base model is not ours."""


class Base(NamedTuple):
    """The model that was adapted: its hub id or folder's name, its folder if it is on this machine, and whether it
    sees images."""

    name: str
    folder: Path | None
    sees: bool


class Licence(NamedTuple):
    """What a model folder says about its licence: the name in its card, and its file of licence terms."""

    name: str | None
    file: str | None


def write(run: Path) -> None:
    """Write the card into `adapted/` of a finished run, from the run's files. Without that folder nothing happens."""
    adapted = run / "adapted"
    if adapted.is_dir():
        files.write_text(adapted / CARD, of_run(run))


def of_run(run: Path) -> str:
    """Return the card of the finished run in the folder `run`."""
    summary, config = files.read_json(run / "summary.json"), configure(read_config(run / "config.yaml"))
    digests = (fingerprint.read(run) or {}).get("questions", {})
    model = config.model.path or (BENCHMARKS[config.benchmark].default_model if _is_known(config.benchmark) else None)
    seen = files.read_json(run / "adapted" / "config.json")
    base = base_of(str(model or summary["model"]), sees="vision_config" in seen)
    return card(summary, config, digests, base, config.benchmark)


class Figures(NamedTuple):
    """The metrics of an adaptation from Python before and after it, and what changed; None where it did not ask."""

    before: Metrics | None
    after: Metrics | None
    changes: AnswerChanges | None


def of_python(
    questions: Sequence[Question], config: RunConfig, method: Method, steps: int, base: Base, figures: Figures
) -> str:
    """Return the card of a policy that was adapted from Python, which writes no summary.json."""
    summary = {
        "steps": steps,
        "label_free": method.label_free,
        "before": figures.before,
        "after": figures.after,
        "held_out": None,
        "answers": {} if figures.changes is None else {"adapted": figures.changes},
        "method_changes": changed_lines(config, method),
    }
    names = {question.benchmark for question in questions}
    digests = {"adapted": fingerprint.of_questions(questions)}
    return card(summary, config, digests, base, names.pop() if len(names) == 1 else "own")


def base_of_policy(policy: Policy) -> Base:
    """Return what is known of the model that a policy was loaded from."""
    return base_of(policy.source or "a model that was in memory", sees=policy.tower is not None)


def base_of(model: str, sees: bool) -> Base:
    """Return what is known of the base model, a folder or a hub id, without fetching anything."""
    try:
        folder = locate_model(model, fetch=False)
    except ModelError:
        folder = None
    hub_id = HUB_ID.fullmatch(model) and not Path(model).exists()
    return Base(model if hub_id else Path(model).name, folder, sees)


def licence_of(folder: Path | None) -> Licence:
    """Return what the folder of the base model says about its licence, in its card's front matter or as a file."""
    if folder is None or not folder.is_dir():
        return Licence(None, None)
    named = front_matter(folder / CARD).get("license")
    terms = sorted(path.name for path in folder.iterdir() if re.match(r"(?i)licen[cs]e", path.name))
    known = isinstance(named, str) and PLAIN.fullmatch(named)
    return Licence(named if known else None, terms[0] if terms else None)


def front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML between the first two lines of dashes of a card, {} where there is none that can be read."""
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def card(
    summary: Mapping[str, Any],
    config: RunConfig,
    digests: Mapping[str, fingerprint.Digests],
    base: Base,
    benchmark: str,
) -> str:
    """Return the text of the card. `summary` is summary.json, or the part of it that is known."""
    parts = [
        _front(config, base, licence_of(base.folder)),
        f"# {base.name}, adapted with {config.method.name}",
        _introduction(summary, config, base),
        "## Result\n\n" + "\n\n".join(_result(summary)),
        *(f"## {title}\n\n{facts}" for title, key in SECTIONS.items() if (facts := _facts(summary.get(key)))),
        "## Data\n\n" + _data(digests, benchmark),
        "## Method\n\n" + _method(summary, config),
        "## Limits\n\n" + LIMITS,
        "## Licence\n\n" + _licence(base, licence_of(base.folder)),
    ]
    return "\n\n".join(parts) + "\n"


SECTIONS = {"Guard": "guard", "Forecast": "forecast"}
"""Title -> the key of summary.json whose facts stand under it, where the run has it."""

WORDS = ("verdict", "action", "status")
"""Facts of these sections that are a word of ours."""

LIMITS = """\
- The model learned to agree with its own majority vote. Where the vote is wrong, it became surer of a wrong answer.
- It was adapted to one set of questions. What it does on others was measured only where held-out questions stand above.
- A vote that becomes more certain does not show that answers became better: only labels do.
- The vision tower was not changed: what the base model cannot see, this model cannot see either.
- It was not tested for use in diagnosis, treatment or any other decision about people."""


def _front(config: RunConfig, base: Base, licence: Licence) -> str:
    """Return the front matter that the hub reads."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if base.sees else "text-generation",
        "tags": ["mm-spine", "test-time-adaptation", config.method.name],
    }
    # The hub refuses a base model that is not an id of its own.
    if HUB_ID.fullmatch(base.name):
        fields |= {"base_model": base.name, "base_model_relation": "finetune"}
    if licence.name:
        fields["license"] = licence.name
    return f"---\n{yaml.safe_dump(fields, sort_keys=False).strip()}\n---"


def _introduction(summary: Mapping[str, Any], config: RunConfig, base: Base) -> str:
    how = "without labels" if summary.get("label_free", True) else "WITH the true labels as its reward (a control)"
    what = "low-rank adapters, merged here" if config.model.train == "lora" else "the language model"
    return (
        f"`{base.name}` after {summary['steps']} steps of test-time reinforcement learning {how}: several answers to "
        f"each question were sampled, their majority vote was the reward, and {what} trained; the vision tower stayed "
        f"frozen. Made by mm-spine {version_of('mm-spine') or ''}".rstrip()
        + ". It loads with `from_pretrained`, its processor too."
    )


def _result(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures of each split: scores where there are labels, else what changed."""
    held_out = summary.get("held_out") or {}
    pairs = {
        "adapted": (summary.get("before"), summary.get("after")),
        "held_out": (held_out.get("before"), held_out.get("after")),
    }
    some = False
    for split, (before, after) in pairs.items():
        changes = (summary.get("answers") or {}).get(split)
        if before is None or after is None:
            continue
        some = True
        if before["n_labelled"]:
            yield _scores(SPLITS[split], before, after)
        if changes:
            yield (
                f"On {SPLITS[split]}, {changes['changed']} of {changes['n']} greedy answers changed, and the mean "
                f"share of the vote's answer went from {_percent(changes['vote_share_before'])} to "
                f"{_percent(changes['vote_share_after'])}."
            )
        if not before["n_labelled"]:
            yield "There were no labels: whether the answers became better is not known."
    if not some:
        yield "Nothing was evaluated before and after: whether the answers became better is not known."


def _scores(where: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    rows = [
        f"Scores on {where}, {before['n_labelled']} of {before['n']} with a right answer, with 95 % intervals over "
        "questions:",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {name} | {_score(before, key)} | {_score(after, key)} |" for key, name in MEASURES.items()),
    ]
    return "\n".join(rows)


def _score(metrics: Mapping[str, Any], key: str) -> str:
    bounds = metrics.get(f"{key}_ci95")
    shown = "" if bounds is None else f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"
    return f"{_percent(metrics[key])}{shown}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _facts(found: Any) -> str:
    """Return the numbers and the verdict of a section as a list. Other texts may hold an answer, and are left out."""
    if not isinstance(found, Mapping):
        return ""
    return "\n".join(
        f"- {name.replace('_', ' ')}: {f'{fact:.4g}' if isinstance(fact, float) else fact}"
        for name, fact in found.items()
        if isinstance(fact, bool | int | float) or (name in WORDS and isinstance(fact, str) and PLAIN.fullmatch(fact))
    )


def _data(digests: Mapping[str, fingerprint.Digests], benchmark: str) -> str:
    name = f"The benchmark `{benchmark}`" if _is_known(benchmark) else "Questions of the user's own"
    lines = [
        f"- {SPLITS.get(split, split)}: {len(of_split)}, digest `{digest(of_split)}`"
        for split, of_split in digests.items()
    ]
    note = "A digest is over ids, prompts, kinds and images, and shows whether other data are the same."
    return "\n".join([f"{name}. {note}", "", *lines])


def digest(digests: fingerprint.Digests) -> str:
    """Return one digest of the questions of a split."""
    return fingerprint.digest(json.dumps(digests, sort_keys=True))


def _is_known(benchmark: str) -> bool:
    return benchmark in BENCHMARKS


def _method(summary: Mapping[str, Any], config: RunConfig) -> str:
    """Return the settings as YAML, without any path."""
    sampling = config.sampling
    tree = {
        "method": config.method.model_dump(mode="json", exclude_none=True),
        "optim": config.optim.model_dump(mode="json"),
        "sampling": {
            "votes": sampling.votes.model_dump(mode="json"),
            "train_rollouts": sampling.train_rollouts,
            **{name: getattr(sampling, name) for name in ("temperature", "max_new_tokens")},
        },
        "model": {"train": config.model.train, "dtype": config.model.dtype},
        "seed": config.seed,
    }
    changed = [f"- {line}" for line in summary.get("method_changes") or ()]
    lines = ["Other than the method's own options:", "", *changed, ""] if changed else []
    return "\n".join([*lines, "```yaml", yaml.safe_dump(tree, sort_keys=False).strip(), "```"])


def _licence(base: Base, licence: Licence) -> str:
    """Say what the base model's folder says, and nothing more."""
    if licence.name:
        known = f"The base model's card names the licence `{licence.name}`; these weights are derived from it."
    else:
        known = "The base model's folder names no licence; look it up before you share these weights."
    return known + (f" Its terms are in the file `{licence.file}` of the base model." if licence.file else "")
