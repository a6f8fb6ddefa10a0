"""Measure a finished source checkpoint on the `tune` split of `digits`, and write its model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from habits import habit
from printed_digits import FONT_PACKAGES, dpkg
from source_recipe import Config

from mm_spine.benchmarks import digits
from mm_spine.processors.answers import parse
from mm_spine.types import Question


@dataclass(frozen=True)
class Figures:
    """Shares in [0, 1] on the tune split; `reasoned` and `direct` are of the sampled responses of that habit."""

    questions: int
    samples: int
    greedy: float
    pass_at_1: float
    maj_at_n: float
    reasoned_right: float
    direct_right: float
    direct_share: float
    direct_share_greedy: float
    unparsed: float


def measure(model: Any, processor: Any, config: Config) -> Figures:
    """Measure a greedy response and `config.samples` samples at temperature 1 for every question of `tune`."""
    tune = digits.load("tune")
    torch.manual_seed(config.seed)
    greedy = answer_all(model, processor, tune.questions, 1)
    sampled = answer_all(model, processor, tune.questions, config.samples)
    gold = np.array([[tune.key[q.id][0]] for q in tune.questions])
    first, answers = (
        np.array([[_answer(t, q) for t in texts] for texts, q in zip(responses, tune.questions, strict=True)])
        for responses in (greedy, sampled)
    )
    right, habits = answers == gold, np.array([[habit(t) for t in texts] for texts in sampled])
    return Figures(
        questions=len(gold),
        samples=config.samples,
        greedy=float((first == gold).mean()),
        pass_at_1=float(right.mean()),
        maj_at_n=float(np.mean([_majority(row) == g for row, (g,) in zip(answers.tolist(), gold, strict=True)])),
        reasoned_right=float(right[habits == "reasoned"].mean()),
        direct_right=float(right[habits == "direct"].mean()),
        direct_share=float((habits == "direct").mean()),
        direct_share_greedy=float(np.mean([habit(t) == "direct" for (t,) in greedy])),
        unparsed=float(np.mean([[a is None for a in row] for row in answers.tolist()])),
    )


@torch.no_grad()
def answer_all(model: Any, processor: Any, questions: Sequence[Question], n: int) -> list[list[str]]:
    """Draw `n` responses to each question: greedily if `n` is 1, else at temperature 1 from the whole vocabulary."""
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": n}
    processor.tokenizer.padding_side = "left"
    answers: list[list[str]] = []
    for start in range(0, len(questions), 64):
        group = questions[start : start + 64]
        contents = [[{"type": "image"}, {"type": "text", "text": q.prompt}] for q in group]
        texts = [
            processor.apply_chat_template([{"role": "user", "content": c}], add_generation_prompt=True)
            for c in contents
        ]
        images = [image for q in group for image in q.images]
        features = processor(text=texts, images=images, return_tensors="pt", padding=True)
        output = model.generate(**features, **(sampling if n > 1 else {}))[:, features["input_ids"].shape[1] :]
        responses = processor.batch_decode(output, skip_special_tokens=True)
        answers += [responses[i : i + n] for i in range(0, len(responses), n)]
    return answers


def _answer(text: str, question: Question) -> str | None:
    answer = parse(text, question.spec)
    return answer and answer.key


def _majority(answers: Sequence[str | None]) -> str | None:
    """Return the most frequent answer; ties go to the shortest, then the smallest."""
    counts = Counter(answer for answer in answers if answer is not None)
    return min(counts, key=lambda a: (-counts[a], len(a), a), default=None)


def write_card(folder: Path, config: Config, stages: Mapping[str, float], figures: Figures, seconds: float) -> None:
    """Write the model card, README.md; every figure in it comes from the run that writes it."""
    fonts = "\n".join(
        f"| {name} | {dpkg('-W', '-f=${Version}', name)} | {FONT_PACKAGES[name]} |" for name in FONT_PACKAGES
    )
    recipe = (
        f"python scripts/study/train_source_checkpoint.py --seed {config.seed} --recipe {config.recipe} --output DIR"
    )
    habits = (_HABITS if config.habits.direct else _NO_HABIT).format(config=config)
    filled = {
        "recipe": recipe, "minutes": seconds / 60, "fonts": fonts, "config": config, "stages": stages, "habits": habits,
    }  # fmt: skip
    (folder / "README.md").write_text(_CARD.format(**filled, f=figures))


_HABITS = """\
habits, {config.habits.steps} steps, {config.habits.direct:.0%} of the targets direct: `The answer is \\boxed{{r}}.`

Answering directly is undertrained deliberately. Instruction-tuned vision-language models have several such habits,
and which one to take is what agreement among a model's own samples can teach."""

_NO_HABIT = """\
{config.habits.steps} more steps of the same, at another rate: no second habit is taught."""

_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# A tiny Qwen2.5-VL that reads printed digits

The starting model of the embedded benchmark `digits` (recipe `{config.recipe}`): a
`Qwen2_5_VLForConditionalGeneration` of 2.2 million parameters that answers questions about two or three digits side
by side. Licence: Apache-2.0.

Intended use: a start for test-time adaptation that fits a demonstration and tests on two CPU cores. It answers
nothing but the question kinds of `digits`, and is weak on purpose (below); use it for nothing else.

## How it was made
`{recipe}`
({minutes:.0f} minutes on two CPU cores), in three stages:

1. vision, {config.vision.steps} steps: the tower reads printed digits under an auxiliary linear head, which is dropped
   (printed digits read: {stages[vision]:.3f}); then the tower is frozen;
2. reasoning, {config.reasoning.steps} steps: read the digits, work, answer in `\\boxed{{}}`
   (response tokens right, teacher-forced: {stages[reasoning]:.3f});
3. {habits}

Training data: digits in the Debian fonts below with random rotation, shear, width, elastic displacement and stroke
width, scanned as the handwriting was (32 x 32 bits, counted in blocks of 4 x 4). No handwritten pixel or label is
trained on.

## How it was chosen
Recipe and steps were chosen on the `tune` split of `digits` (handwriting, disjoint from `adapt` and `held_out`) with
seed 0, which was not chosen among others.
Figures of this run there, {f.questions} questions, {f.samples} samples at temperature 1:

| | |
|---|---|
| greedy | {f.greedy:.3f} |
| mean pass@1 | {f.pass_at_1:.3f} |
| maj@{f.samples} | {f.maj_at_n:.3f} |
| reasoned responses right | {f.reasoned_right:.3f} |
| direct responses right | {f.direct_right:.3f} |
| direct share of samples | {f.direct_share:.3f} |
| direct share of greedy responses | {f.direct_share_greedy:.3f} |
| without a boxed answer | {f.unparsed:.3f} |

## Fonts
At most {config.files_per_package} files of each package.

| Debian package | version | licence of its fonts |
|---|---|---|
{fonts}
"""
