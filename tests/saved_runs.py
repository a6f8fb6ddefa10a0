"""Folders as a run leaves them, and their pages as text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from mm_spine import evaluation
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.evaluation import Item
from mm_spine.files import write_json, write_json_lines
from mm_spine.files.rollout_table import write_rollouts
from mm_spine.reporting import changes, curves, page_figures, report, result
from mm_spine.reporting.saved_run import read_run
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, StepReport, Verdict, Vote

EVIL = "<script>alert('x')</script>&\"</details>"


SPEC = AnswerSpec("text")


IDS = (40, 281, 220, 20, 13, 415)  # "I see 5.<|im_end|>" in the embedded tokenizer


def item(name: str, greedy: bool | None, votes: Sequence[str], split: str = "adapted", text: str = "said") -> Item:
    """Four samples or so with the answers `votes`; "1" is right. Without gold answers where `greedy` is None."""
    verdicts = tuple(Verdict(float(vote == "1"), vote == "1", f"{vote!r} graded") for vote in votes)
    winner = max(dict.fromkeys(votes), key=votes.count)
    return Item(
        id=name, split=split, greedy_text=text,
        greedy=None if greedy is None else Verdict(float(greedy), greedy, "because"),
        texts=tuple(f"it is {vote}" for vote in votes), answers=tuple(Answer(vote, vote) for vote in votes),
        classes=tuple(votes), verdicts=None if greedy is None else verdicts, vote=Answer(winner, winner),
        vote_score=None if greedy is None else float(winner == "1"), lengths=(3,) * len(votes),
        entropies=(0.5,) * len(votes), unparsed=(False,) * len(votes),
    )  # fmt: skip


BEFORE = (
    item("a", False, "1222"), item("b", True, "1112"), item("c", True, "1111"), item("d", False, "2222"),
    item("e", False, "1222", "held_out"), item("f", True, "1122", "held_out"),
)  # fmt: skip


AFTER = (
    item("a", True, "1112"), item("b", False, "2221"), item("c", True, "1111"), item("d", False, "2222"),
    item("e", True, "1111", "held_out"), item("f", True, "1111", "held_out"),
)  # fmt: skip


def rollout(name: str, index: int, ids: Sequence[int] = IDS, entropy: Sequence[float] | None = None) -> Rollout:
    nats = np.linspace(1.0, 0.0, len(ids)) if entropy is None else np.asarray(entropy)
    logp = np.full(len(ids), -0.25, np.float32)
    return Rollout(name, index, tuple(ids), "I see 5.", logp, nats.astype(np.float16), "stop")


def group(name: str, rollouts: Sequence[Rollout], answers: Sequence[str | None], winner: str | None = "1") -> Group:
    vote = Vote(winner, 0.5, {}, 0.0, len(rollouts))
    return Group(Question(name, (), "?", SPEC), tuple(rollouts), tuple(answers), vote, parsed=(None,) * len(rollouts))


def write_step(folder: Path, step: int, groups: Sequence[Group], selected: Any = None) -> None:
    if selected is None:  # the upper third of each response
        selected = [[np.arange(len(r.token_ids)) < len(r.token_ids) / 3 for r in one.rollouts] for one in groups]
    write_rollouts(folder / "rollouts" / f"step_{step:06d}.parquet", groups, step, selected)


def write_run(
    folder: Path, before: Sequence[Item] = BEFORE, after: Sequence[Item] = AFTER, steps: int = 3, **summary: Any
) -> Path:
    """A finished run's folder, every file that the report reads."""
    blocks = [evaluation.metrics([row for row in rows if row.split == "adapted"]) for rows in (before, after)]
    outer = [[row for row in rows if row.split == "held_out"] for rows in (before, after)]
    held_out = {when: evaluation.metrics(rows) for when, rows in zip(("before", "after"), outer, strict=True) if rows}
    facts: dict[str, Any] = {
        "benchmark": "digits", "method": "spine", "model": "tiny", "seed": 0, "label_free": True, "votes": 4,
        "steps": steps, "before": blocks[0], "after": blocks[1], "held_out": held_out or None,
        "frozen_parameters": 1_234_567, "trainable_parameters": 7_654_321, "tower_checksum_unchanged": True,
        "merger": "frozen", "seconds": {"sample": 30.0, "update": 20.0, "evaluate": 10.0, "total": 70.0},
        "tokens": {"sampled": 1000, "trained": 800, "selected": 160}, "peak_memory_bytes": 2_500_000_000,
        "stopped_by": "steps", "skipped": {"z": "z: cannot read image"}, "bad_rows": ["row 7: no answer"],
    }  # fmt: skip
    write_json(folder / "summary.json", facts | summary)
    (folder / "config.yaml").write_text("benchmark: digits\nmethod:\n  name: spine\nseed: 0\n")
    write_json(folder / "environment.json", {"python": "3.11"})
    rows = [step_report(step) for step in range(steps)]
    write_json_lines(folder / "steps.jsonl", rows)
    write_json_lines(folder / "timings.jsonl", [timing(step) for step in range(steps)])
    write_json_lines(folder / "evaluation" / "steps.jsonl", [accuracy(step) for step in range(steps)])
    for when, items in (("before", before), ("after", after)):
        write_json_lines(folder / "evaluation" / f"{when}.jsonl", map(evaluation.to_json, items))
    for step in range(steps):
        groups = [group(name, [rollout(name, i) for i in range(4)], ["1", "1", "2", None]) for name in "ab"]
        write_step(folder, step, groups)
    (folder / "adapted").mkdir()
    shutil.copy(MODEL_DIR / "tokenizer.json", folder / "adapted")
    shown = [Question(name, (Image.new("RGB", (300, 200), "navy"),), f"What is {name}?", SPEC) for name in "abe"]
    changes.save_for_report(folder, changes.find_changes(*map(rows_of, (before, after))), shown, images=True)
    return folder


def rows_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(evaluation.to_json(row))) for row in items]


def step_report(step: int) -> StepReport:
    return StepReport(
        step, lr=1e-6, loss=-0.1, majority_share=0.5 + 0.1 * step, length_mean=6.0, entropy_mean=0.4 - 0.05 * step,
        entropy_forks=0.9 - 0.1 * step, band_low=0.3, band_high=0.6, selected_share=0.2, parity_mean=1e-6,
        parity_max=1e-5,
    )  # fmt: skip


def timing(step: int) -> dict[str, Any]:
    return {"step": step, "sample": 1.0, "update": 0.5, "selected": 3, "peak_memory_bytes": 2_000_000_000 + step}


def accuracy(step: int) -> dict[str, Any]:
    return {"step": step, "label_accuracy": 0.5, "reward_accuracy": 0.75, "ground_truth_ratio": 0.4 + 0.1 * step}


def undrawn(folder: Path) -> str:
    """The page with all its charts, none of them drawn: drawing is what takes the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_scores", "draw_pass_at_k", "draw_entropy", "draw_chart"):
            patch.setattr(page_figures, name, lambda what, as_files: _placeholder(what))
        return report.render_report(read_run(folder))


def _placeholder(what: Any) -> page_figures.PageFigure:
    name = what.name if isinstance(what, curves.Chart) else "entropy_histogram"
    name = f"scores_{what.name}" if isinstance(what, result.SplitResult) else name
    chart = isinstance(what, curves.Chart)
    title, note = (what.heading, what.note) if chart else (name, "")
    data = {"lines": []} if chart and what.over == "step" else None
    return page_figures.PageFigure(name, title, note, Markup("<svg></svg>"), data)


def text_of(folder: Path) -> str:
    """The page without styles, drawings and script, none of them drawn."""
    html = undrawn(folder)
    html = re.sub(r"<(style|svg|script)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace("\u00a0", " ")


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
