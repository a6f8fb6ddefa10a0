"""Write our benchmarks and the user's own folders as lmms-eval tasks, for any model that lmms-eval knows.

    python -m mm_spine.integrations.lmms_tasks digits my_scans --output tasks
    lmms-eval --model mm_spine --model_args pretrained=DIR --include_path tasks --tasks mm_spine_my_scans_adapt

A task is a YAML file and a list of its questions as JSON lines. Prompts and images are not copied: they come from our
loaders when lmms-eval asks for them, and scores come from our graders. The YAML names the functions below.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from PIL import Image

from mm_spine.benchmarks import BENCHMARKS, resolve
from mm_spine.config import RunConfig
from mm_spine.config.layers import read_config
from mm_spine.configs import shipped
from mm_spine.files import write_json_lines
from mm_spine.methods.table import configure
from mm_spine.processors.answers import grade, parse
from mm_spine.processors.chat import content
from mm_spine.processors.vision import open_image
from mm_spine.types import LabelledSet, Question

SHIPPED = Path(__file__).resolve().parent / "tasks"
"""The tasks of `digits`, as `write_tasks("digits", SHIPPED)` writes them."""

Doc = Mapping[str, Any]
"""One line of the list of a task: id, question and answer for people to read, and where to load the question from."""

# lmms-eval grades in several threads; our loaders and graders are not made for that.
_one_at_a_time = RLock()

_YAML = """\
# Written by mm_spine.integrations.lmms_tasks: {about}
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {task}.jsonl
test_split: test
output_type: generate_until
doc_to_messages: !function mm_spine.integrations.lmms_tasks.doc_to_messages
doc_to_visual: !function mm_spine.integrations.lmms_tasks.doc_to_visual
doc_to_text: !function mm_spine.integrations.lmms_tasks.doc_to_text
doc_to_target: answer
process_results: !function mm_spine.integrations.lmms_tasks.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  do_sample: false
  temperature: 0.0
  until: []
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
  - metric: unparsed
    aggregation: mean
    higher_is_better: false
metadata:
  version: 1.0
"""


def write_tasks(
    target: str,
    output: Path,
    *,
    splits: Sequence[str] = (),
    source: str | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
) -> list[str]:
    """Write a task into `output` for each split of a benchmark or folder; return the names of the tasks.

    Defaults: the splits that a run evaluates, and `prompt` and `max_new_tokens` of the shipped configuration of the
    benchmark. Raises ValueError where there is no such benchmark, folder or split, or its data cannot be found.
    """
    benchmark, config = resolve(target), config_of(target)
    place = target if target in BENCHMARKS else str(Path(target).expanduser().resolve())
    of_a_run = [split for split in (config.split or benchmark.adapt_split, benchmark.held_out_split) if split]
    where = {"benchmark": place, "source": source or config.source or "", "style": prompt or config.prompt.style}
    names = []
    for split in splits or of_a_run:
        labelled = _load(place, split, where["source"], where["style"])
        names.append("mm_spine_" + re.sub(r"\W+", "_", f"{benchmark.name}_{split}"))
        write_json_lines(output / f"{names[-1]}.jsonl", _docs(labelled, {**where, "split": split}))
        about = f"{benchmark.name}, {split}: {len(labelled.questions)} questions"
        length = max_new_tokens or config.evaluation.max_new_tokens
        text = _YAML.format(about=about, task=names[-1], max_new_tokens=length)
        (output / f"{names[-1]}.yaml").write_text(text)
    return names


def config_of(target: str) -> RunConfig:
    """Return the shipped configuration of a benchmark, or of a folder what own.yaml says for the largest models."""
    known = shipped(target if target in BENCHMARKS else "own")
    values = read_config(known) if known else {}
    *_, largest = values.pop("sizes", [{}])
    return configure(values, {"evaluation": largest.get("evaluation", {})})


def _docs(labelled: LabelledSet, where: Mapping[str, str]) -> list[dict[str, Any]]:
    golds = {question.id: list(labelled.key.get(question.id, ())) for question in labelled.questions}
    return [{"id": q.id, "question": q.prompt, "answer": golds[q.id], **where} for q in labelled.questions]


def is_ours(doc: Doc) -> bool:
    """Say whether `write_tasks` wrote this line of a task."""
    return {"id", "benchmark", "split", "source", "style"} <= doc.keys()


def question_of(doc: Doc) -> Question:
    """Load the question of a line. Raises ValueError where the data has changed and no longer holds it."""
    with _one_at_a_time:
        questions = _by_id(doc["benchmark"], doc["split"], doc["source"], doc["style"])
    if doc["id"] not in questions:
        raise ValueError(f"{doc['benchmark']}: question {doc['id']!r} is no longer there; write the tasks again")
    return questions[doc["id"]]


@lru_cache(maxsize=32)
def _by_id(benchmark: str, split: str, source: str, style: str) -> dict[str, Question]:
    return {question.id: question for question in _load(benchmark, split, source, style).questions}


def _load(benchmark: str, split: str, source: str, style: str) -> LabelledSet:
    return resolve(benchmark).load(split, source or None, style)


def doc_to_messages(doc: Doc) -> list[dict[str, Any]]:
    """Return one user turn in lmms-eval's format: texts and decoded images, in the order that the model sees them.

    Raises BadQuestion where an image cannot be read.
    """
    question = question_of(doc)
    images = doc_to_visual(doc)
    parts = [
        part if part["type"] == "text" else {"type": "image", "url": images[part["image"] - 1]}
        for part in content(question.prompt, len(images))
    ]
    return [{"role": "user", "content": parts}]


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    """Return the images of a question, upright and RGB."""
    question = question_of(doc)
    # A copy of the pixels drops the EXIF tag by which a model's own processor would turn the image again.
    return [Image.fromarray(np.asarray(open_image(image, question.id))) for image in question.images]


def doc_to_text(doc: Doc) -> str:
    """Return the prompt for models that take images and text apart. An image within the text is `<image>`."""
    question = question_of(doc)
    # Such models put images first themselves, so markers before the first text are left out.
    parts = content(question.prompt, len(question.images))
    first_text = next(i for i, part in enumerate(parts) if part["type"] == "text")
    return "".join(part.get("text", "<image>") for part in parts[first_text:])


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Return `score` in [0, 1], by the grader of `mm-spine evaluate`, if there is a gold, and `unparsed`, 1 or 0."""
    question, golds = question_of(doc), tuple(doc["answer"])
    with _one_at_a_time:
        answer = parse(results[0], question.spec)
        graded = {"score": grade(answer, golds, question.spec).score} if golds else {}
    return {**graded, "unparsed": float(answer is None)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write tasks and print their names, one on each line."""
    parser = argparse.ArgumentParser(prog="python -m mm_spine.integrations.lmms_tasks", description=__doc__)
    parser.add_argument("targets", nargs="+", metavar="BENCHMARK|FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tasks, for --include_path")
    parser.add_argument("--split", action="append", default=[], help="may be repeated (default: those of a run)")
    parser.add_argument("--source", help="where the data is: a folder, or another hub id")
    parser.add_argument("--prompt", help="reason, short or verbatim (default: the benchmark's own)")
    parser.add_argument("--max-new-tokens", type=int, help="default: the benchmark's own")
    given = parser.parse_args(arguments)
    how = {"splits": given.split, "source": given.source, "prompt": given.prompt}
    try:
        for target in given.targets:
            names = write_tasks(target, given.output, **how, max_new_tokens=given.max_new_tokens)
            print("\n".join(names))
    except (ValueError, OSError) as error:
        print(f"mm-spine: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
