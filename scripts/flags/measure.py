"""Measure a model on the tune split of `flags`, without and with the camera's shift, per kind of question.

    python scripts/flags/measure.py --model DIR [--split tune] [--see flag|name|words] [--samples 4]

`--see` says what stands at the place of a picture: `flag` (the default), what the vision tower makes of it; `name`, the
input embeddings that the tower is trained towards; `words`, the country's name as text. The last two are what the
language model knows, whatever the tower sees.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tower import name_tokens

from mm_spine import Policy, configure, evaluate
from mm_spine.benchmarks import flags
from mm_spine.evaluation import breakdown, metrics
from mm_spine.policy.image_cache import Features
from mm_spine.types import Question

NAMES = {country.code: country.in_sentence for country in flags.SHOWN}


def in_words(question: Question, codes: Sequence[str]) -> Question:
    """Return the question with the names of its countries in the place of their pictures."""
    prompt = question.prompt
    for number, code in enumerate(codes, 1):
        prompt = prompt.replace(f"<image{number}>", NAMES[code])
    return Question(question.id, None, prompt, question.spec, benchmark=question.benchmark)


@torch.no_grad()
def show_names(policy: Policy, shown: Mapping[str, Sequence[str]], questions: Sequence[Question]) -> None:
    """Let the images of `questions` have the embeddings of their countries' names as features.

    `shown` maps the id of a question to the codes of its countries.
    """
    table = policy.model.get_input_embeddings().weight
    for question in questions:
        encoded = policy.family.encode(question, policy.processor, None, None, policy.chat)
        for image, code in zip(encoded.images, shown[question.id], strict=True):
            name = table[torch.tensor(name_tokens(policy.tokenizer, NAMES[code]))]
            # Where the features of the tower would be kept: it is not asked for what is there.
            policy.images._memory.put(image.key, Features(name.clone()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--split", default="tune", choices=flags.SPLITS)
    parser.add_argument("--see", default="flag", choices=("flag", "name", "words"))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = configure(
        {
            "model": {"dtype": options.dtype},
            "evaluation": {"samples": options.samples, "max_new_tokens": 24, "temperature": 0.7},
        }
    )
    labelled, shown = flags.load(options.split), {planned.id: planned.codes for planned in flags.plan(options.split)}
    questions = list(labelled.questions)
    policy = Policy.load(options.model, config.model)
    if options.see == "name":
        show_names(policy, shown, questions)
    elif options.see == "words":
        questions = [in_words(question, shown[question.id]) for question in questions]
    started = time.perf_counter()
    items = evaluate(questions, policy, labelled.key, config=config, progress=False).items
    print(f"{options.split}, {options.see}, {options.samples} samples, {time.perf_counter() - started:.0f} s")
    rows = breakdown(items, labelled.tags, ("kind",))["kind"]
    for kind, row in rows.items():
        print(f"| {kind} | {row['n']} | {row['greedy']:.3f} | {row['pass_at_1']:.3f} | {row['maj_at_n']:.3f} |")
    whole = metrics(items)
    print(f"| all | {len(items)} | {whole['greedy']:.3f} | {whole['pass_at_1']:.3f} | {whole['maj_at_n']:.3f} |")


if __name__ == "__main__":
    main()
