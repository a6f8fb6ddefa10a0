"""What the answers are worth: the only code that sees a gold answer.

pass@1 is the mean score over N samples, maj@N the score of the vote's answer, pass@N the best score (TTRL,
arXiv 2504.16084, section 3); greedy is one response at temperature 0. One grader serves before, during and after.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mm_spine import measures
from mm_spine.intervals import bootstrap_ci
from mm_spine.processors.answers import grade, grade_all, parse, parse_all
from mm_spine.sampling import Sampler
from mm_spine.types import Answer, AnswerKey, AnswerSpec, Group, Question, Reward, Rollout, Verdict
from mm_spine.voting import make_group, representative

log = logging.getLogger(__name__)

CHUNK = 256
"""Questions sampled at a time: bounds the rollouts held in memory; no draw depends on it."""


@dataclass(frozen=True)
class Item:
    """One question's greedy response and N samples, graded; verdicts and scores are None without a gold answer.

    `answers`, `classes`, `verdicts`, `lengths` (tokens), `entropies` (mean per response, nats, None where the
    sampler gave none) and `unparsed` have one entry per sample.
    """

    id: str
    split: str
    greedy_text: str
    greedy: Verdict | None
    texts: tuple[str, ...]
    answers: tuple[Answer | None, ...]
    classes: tuple[str | None, ...]
    verdicts: tuple[Verdict, ...] | None
    vote: Answer | None
    vote_score: float | None
    lengths: tuple[int, ...]
    entropies: tuple[float | None, ...]
    unparsed: tuple[bool, ...]


Measure = Callable[[Item], float | None]
"""A figure of one question, None where it has no gold answer."""


def greedy_score(item: Item) -> float | None:
    """Score of the greedy response, in [0, 1]."""
    return None if item.greedy is None else item.greedy.score


def pass_at_1(item: Item) -> float | None:
    """Mean score over the samples, in [0, 1]."""
    return None if item.verdicts is None else float(np.mean([verdict.score for verdict in item.verdicts]))


def maj_at_n(item: Item) -> float | None:
    """Score of the vote's answer, in [0, 1]; 0 where nothing parsed."""
    return item.vote_score


def pass_at_n(item: Item) -> float | None:
    """Best score over the samples, in [0, 1]."""
    return None if item.verdicts is None else max(verdict.score for verdict in item.verdicts)


MEASURES: Mapping[str, Measure] = {
    measures.GREEDY: greedy_score,
    measures.PASS_AT_1: pass_at_1,
    measures.MAJ_AT_N: maj_at_n,
    measures.PASS_AT_N: pass_at_n,
}


def evaluate(
    questions: Sequence[Question], key: AnswerKey, sampler: Sampler, *, samples: int, split: str
) -> list[Item]:
    """Greedy and `samples` sampled responses per question, voted and graded, in the order of the questions.

    The draws are those of purpose "evaluate", step 0, every time: before and after are compared with common random
    numbers. A question the sampler could not ask (an empty list) is left out and logged. Raises ValueError when
    `samples` < 1, a gold answer is not of its question's kind, or a question got another number of responses.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; evaluation needs at least 1 sample per question")
    check_key(questions, key)
    items = []
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        greedy = sampler.sample(chunk, 1, step=0, purpose="evaluate", greedy=True)
        sampled = sampler.sample(chunk, samples, step=0, purpose="evaluate")
        for question, first, rollouts in zip(chunk, greedy, sampled, strict=True):
            if _was_asked(question, first, rollouts, samples):
                items.append(_item(question, key.get(question.id), first[0], rollouts, split))
    return items


def check_key(questions: Sequence[Question], key: AnswerKey) -> None:
    """Raise ValueError naming the first question whose gold answer is not of its kind, before anything is sampled."""
    for question in questions:
        if question.id in key:
            try:
                grade(None, key[question.id], question.spec)
            except ValueError as error:
                raise ValueError(f"question {question.id!r}: {error}") from error


def _was_asked(question: Question, greedy: Sequence[Rollout], rollouts: Sequence[Rollout], samples: int) -> bool:
    if not greedy and not rollouts:
        log.warning("question %r could not be asked and is not evaluated", question.id)
        return False
    if len(greedy) != 1 or len(rollouts) != samples:
        raise ValueError(
            f"question {question.id!r}: the sampler gave {len(greedy)} greedy and {len(rollouts)} sampled "
            f"responses, expected 1 and {samples}"
        )
    return True


def _item(
    question: Question, gold: Sequence[str] | None, greedy: Rollout, rollouts: Sequence[Rollout], split: str
) -> Item:
    """Vote without the gold answer first, then grade what was voted and sampled."""
    group = make_group(question, rollouts)
    texts = tuple(rollout.text for rollout in rollouts)
    answers = parse_all(texts, question.spec)
    vote = representative(answers, group.answers, group.vote.answer)
    return Item(
        id=question.id,
        split=split,
        greedy_text=greedy.text,
        greedy=None if gold is None else grade(parse(greedy.text, question.spec), gold, question.spec),
        texts=texts,
        answers=answers,
        classes=tuple(group.answers),
        verdicts=None if gold is None else grade_all(answers, gold, question.spec),
        vote=vote,
        vote_score=None if gold is None else grade(vote, gold, question.spec).score,
        lengths=tuple(len(rollout.token_ids) for rollout in rollouts),
        entropies=tuple(_mean_entropy(rollout) for rollout in rollouts),
        unparsed=tuple(answer is None for answer in answers),
    )


def _mean_entropy(rollout: Rollout) -> float | None:
    if rollout.entropy is None or len(rollout.entropy) == 0:
        return None
    return float(np.mean(rollout.entropy, dtype=np.float64))


def to_json(item: Item) -> dict[str, Any]:
    """An item as one row of `evaluation/{before,after}.jsonl`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Answer | Verdict):
            return value._asdict()
        return [plain(entry) for entry in value] if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in vars(item).items()}


def from_json(row: Mapping[str, Any]) -> Item:
    """The item of a row written by `to_json`. Raises ValueError naming the item and the keys that do not fit."""
    if set(row) != set(Item.__dataclass_fields__):
        odd = sorted(set(row) ^ set(Item.__dataclass_fields__))
        raise ValueError(f"item {row.get('id')!r}: missing or unknown keys {odd}; evaluate again with this version")
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    fields["greedy"] = _verdict(row["greedy"])
    fields["vote"] = _answer(row["vote"])
    fields["answers"] = tuple(map(_answer, row["answers"]))
    fields["verdicts"] = None if row["verdicts"] is None else tuple(map(_verdict, row["verdicts"]))
    return Item(**fields)


def _verdict(row: Mapping[str, Any] | None) -> Verdict | None:
    return None if row is None else Verdict(**row)


def _answer(row: Mapping[str, Any] | None) -> Answer | None:
    return None if row is None else Answer(**row)


def metrics(items: Sequence[Item]) -> dict[str, Any]:
    """One metrics block of summary.json: scores and shares in [0, 1], lengths in tokens, entropy in nats.

    Scores and their 95 % intervals are over the `n_labelled` questions with a gold answer, None where there are
    none. Raises ValueError when there are no items.
    """
    block: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        values = [value for value in map(measure, items) if value is not None]
        block[name] = float(np.mean(values)) if values else None
        if name != "pass_at_n":
            block[f"{name}_ci95"] = list(bootstrap_ci(values)) if values else None
    labelled = sum(item.verdicts is not None for item in items)
    return {**block, **label_free_metrics(items), "n_labelled": labelled}


def breakdown(
    items: Sequence[Item], tags: Mapping[str, Mapping[str, str]], names: Sequence[str]
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Tag -> value -> n and mean scores in [0, 1] of its labelled questions, as the benchmark's results are published.

    `tags` is question id -> tag -> value, `names` the tags to report; questions without a tag are in no row of it.
    """
    table: dict[str, dict[str, dict[str, float | int]]] = {}
    for name in names:
        rows: dict[str, list[Item]] = {}
        for item in items:
            value = tags.get(item.id, {}).get(name)
            if value is not None and item.verdicts is not None:
                rows.setdefault(value, []).append(item)
        if rows:
            table[name] = {value: _means(rows[value]) for value in sorted(rows)}
    return table


def _means(items: Sequence[Item]) -> dict[str, float | int]:
    scores = {name: [value for value in map(measure, items) if value is not None] for name, measure in MEASURES.items()}
    return {"n": len(items), **{name: float(np.mean(values)) for name, values in scores.items()}}


def label_free_metrics(items: Sequence[Item]) -> dict[str, Any]:
    """What shows a collapse without any label: mean length (tokens), mean entropy (nats), unparsed share, n.

    The mean entropy is over tokens, None where the sampler gave no entropies.
    """
    if not items:
        raise ValueError("nothing was evaluated: no question could be asked")
    lengths = np.array([length for item in items for length in item.lengths], dtype=np.float64)
    entropies = [entropy for item in items for entropy in item.entropies]
    known = np.array([entropy is not None for entropy in entropies])
    tokens, nats = lengths[known], np.array([entropy for entropy in entropies if entropy is not None])
    return {
        "mean_length": float(lengths.mean()),
        "mean_entropy": float(np.average(nats, weights=tokens)) if known.any() else None,
        "unparsed": float(np.mean([flag for item in items for flag in item.unparsed])),
        "n": len(items),
    }


def paired_values(before: Sequence[Item], after: Sequence[Item], measure: str | Measure) -> np.ndarray:
    """after - before per question, shape (Q,), over the questions with a gold answer, in the order of `before`.

    Raises ValueError when the two do not hold the same questions of the same splits.
    """
    measured = MEASURES[measure] if isinstance(measure, str) else measure
    old, new = ({(item.split, item.id): measured(item) for item in items} for items in (before, after))
    if old.keys() != new.keys():
        odd = sorted(old.keys() ^ new.keys())
        raise ValueError(
            f"{len(odd)} questions are on one side only, first {odd[0][1]!r} ({odd[0][0]}); "
            "a paired difference needs the same questions on both"
        )
    pairs = [(value, new[name]) for name, value in old.items()]
    return np.array([b - a for a, b in pairs if a is not None and b is not None], dtype=np.float64)


def paired_difference(
    before_items: Sequence[Item], after_items: Sequence[Item], measure: str | Measure
) -> tuple[float, tuple[float, float]]:
    """Mean of after - before over questions and its 95 % bootstrap interval, paired by question.

    `measure` is a name of `MEASURES` or a function of an item. Raises ValueError when the questions differ or none
    has a gold answer.
    """
    differences = paired_values(before_items, after_items, measure)
    if differences.size == 0:
        raise ValueError("no question has a gold answer on both sides; there is nothing to compare")
    return float(differences.mean()), bootstrap_ci(differences)


@dataclass(frozen=True)
class _Oracle:
    """The control that rewards the truth. A run that uses it is not label-free."""

    key: AnswerKey
    label_free: bool = False

    def __call__(self, group: Group) -> Tensor:
        question = group.question
        if question.id not in self.key:
            raise ValueError(f"question {question.id!r} has no gold answer; the oracle needs one for every question")
        answers = parse_all([rollout.text for rollout in group.rollouts], question.spec)
        verdicts = grade_all(answers, self.key[question.id], question.spec)
        return torch.tensor([float(verdict.correct) for verdict in verdicts])


def oracle_reward(key: AnswerKey) -> Reward:
    """(group) -> (N,) rewards, 1.0 where a rollout's graded answer is correct; its `label_free` is False.

    Calling it raises ValueError for a question without a gold answer.
    """
    return _Oracle(key)


def step_accuracy(
    rollouts_dir: Path,
    questions: Sequence[Question],
    key: AnswerKey,
    habit: Callable[[str], str] | None = None,
) -> list[dict[str, Any]]:
    """The rows of `evaluation/steps.jsonl`, computed after the run from its saved `step_*.parquet`, by step.

    Means over the step's labelled questions (None without one), as TTRL logs them (arXiv 2504.16084, section 3):
    label_accuracy 1[vote correct], reward_accuracy mean 1[r_i(vote) == r_i(truth)], pass_at_n,
    ground_truth_ratio mean 1[r_i(truth)]; majority_ratio is over all questions. `habit` names the way a text
    answers; `habits` then holds each name's share of the rollouts. Raises ValueError naming an unknown question.
    """
    known = {question.id: question for question in questions}
    rows = [_step_row(path, known, key, habit) for path in rollouts_dir.glob("step_*.parquet")]
    return sorted(rows, key=lambda row: row["step"])


_COLUMNS = ("step", "question_id", "index", "text", "answer", "vote")


def _step_row(
    path: Path, known: Mapping[str, Question], key: AnswerKey, habit: Callable[[str], str] | None
) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    rows = pq.read_table(path, columns=list(_COLUMNS)).to_pylist()
    for row in rows:
        groups.setdefault(row["question_id"], []).append(row)
    if unknown := groups.keys() - known.keys():
        raise ValueError(f"{path.name}: question {min(unknown)!r} is not among the {len(known)} questions given")
    graded = [_graded_step(groups[name], known[name].spec, key[name]) for name in groups if name in key]
    agreeing = [float(np.mean([_agrees(row) for row in group])) for group in groups.values()]
    result: dict[str, Any] = {
        "step": rows[0]["step"] if rows else int(path.stem.removeprefix("step_")),
        "questions": len(groups),
        "majority_ratio": float(np.mean(agreeing)) if agreeing else None,
    }
    for name in ("label_accuracy", "reward_accuracy", "pass_at_n", "ground_truth_ratio"):
        result[name] = float(np.mean([entry[name] for entry in graded])) if graded else None
    if habit is not None:
        counts = Counter(habit(row["text"]) for row in rows)
        result["habits"] = {name: counts[name] / len(rows) for name in sorted(counts)}
    return result


def _agrees(row: Mapping[str, Any]) -> bool:
    """r_i(vote): the rollout parsed and its class won. Unparsed never wins, so None does not agree with None."""
    return row["vote"] is not None and row["answer"] == row["vote"]


def _graded_step(rows: Sequence[Mapping[str, Any]], spec: AnswerSpec, gold: Sequence[str]) -> dict[str, float]:
    """One question of one step. The vote is graded through a response that gave it, never by parsing its name."""
    answers = parse_all([row["text"] for row in rows], spec)
    verdicts = grade_all(answers, gold, spec)
    vote = representative(answers, [row["answer"] for row in rows], rows[0]["vote"])
    agreement = [_agrees(row) == verdict.correct for row, verdict in zip(rows, verdicts, strict=True)]
    return {
        "label_accuracy": float(grade(vote, gold, spec).correct),
        "reward_accuracy": float(np.mean(agreement)),
        "pass_at_n": max(verdict.score for verdict in verdicts),
        "ground_truth_ratio": float(np.mean([verdict.correct for verdict in verdicts])),
    }
