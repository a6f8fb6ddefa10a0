"""The report of a run, from synthetic folders and from one real run."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from browser import open_page
from markupsafe import Markup
from PIL import Image
from small import small_config, write_data, write_model
from tokenizers import Tokenizer
from typer.testing import CliRunner

from mm_spine import cli, evaluation
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.evaluation import Item
from mm_spine.files import read_json_lines, write_json, write_json_lines
from mm_spine.reporting import (
    changed_questions,
    changes,
    curves,
    figures,
    overview,
    page,
    report,
    result,
    thumbnails,
    token_entropy,
    token_text,
    training_responses,
)
from mm_spine.reporting.saved_run import read_run
from mm_spine.reporting.training_responses import HEAD, TAIL
from mm_spine.rollout_table import write_rollouts
from mm_spine.runs.run import run
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
    return Group(Question(name, (), "?", SPEC), tuple(rollouts), tuple(answers), vote)


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
    changes.save_for_report(folder, changes.find_changes(*map(rows_of, (before, after))).shown(), shown, images=True)
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("finished") / "run")
    report.write_report(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A run's folder to take files from."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def undrawn(folder: Path) -> str:
    """The page with all its charts, none of them drawn: drawing is what takes the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_draw_scores", "_draw_entropy", "_draw_chart"):
            patch.setattr(report, name, lambda what, png: _placeholder(what))
        return report.render_report(read_run(folder))


def _placeholder(what: Any) -> report.PageFigure:
    name = what.name if isinstance(what, curves.Chart) else "entropy_histogram"
    name = f"scores_{what.name}" if isinstance(what, result.SplitResult) else name
    chart = isinstance(what, curves.Chart)
    title, note = (what.heading, what.note) if chart else (name, "")
    return report.PageFigure(name, title, note, Markup("<svg></svg>"), {"lines": []} if chart else None)


def text_of(folder: Path) -> str:
    """The page without styles, drawings and script, none of them drawn."""
    html = undrawn(folder)
    html = re.sub(r"<(style|svg|script)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).replace("\u00a0", " ")


def test_the_page_says_what_the_run_was_worth(finished: Path) -> None:
    text = text_of(finished)
    assert "spine on digits" in text
    assert "label-free: adapting read no gold answer" in text
    assert "vision tower frozen, checksum unchanged" in text
    assert "1,234,567 frozen" in text and "2.50 GB" in text and "1 min 10 s" in text
    assert "One greedy answer is right on 50.0 % of 4 questions, before on 50.0 %: +0.0 points" in text
    assert "no difference that these questions could show" in text
    assert "maj@4" in text and "Held-out questions" in text
    assert "Not on this page" not in text
    assert "1 questions could not be asked" in text and "z: cannot read image" in text and "row 7: no answer" in text


def test_the_headline_by_hand(finished: Path) -> None:
    adapted, held_out = result.split_results(read_run(finished))
    greedy, pass_at_1, vote = held_out.measures.values()
    assert (greedy.before.value, greedy.after.value, greedy.gain.value) == (0.5, 1.0, 0.5)  # type: ignore[union-attr]
    assert (pass_at_1.before.value, pass_at_1.after.value) == (0.375, 1.0)  # type: ignore[union-attr]
    assert (vote.name, vote.before.value, vote.after.value) == ("maj@4", 0.5, 1.0)  # type: ignore[union-attr]
    # Adapted, greedy after 1 0 1 0 and the vote before 0 1 1 0; held out, 1 1 and 0 1.
    assert adapted.over_vote is not None and adapted.over_vote.value == 0.0
    assert held_out.over_vote is not None and held_out.over_vote.value == 0.5
    assert (adapted.questions, adapted.labelled) == (4, 4)


def test_a_loss_is_called_a_loss(tmp_path: Path) -> None:
    before = [item(f"q{i}", True, "1111") for i in range(9)]
    after = [item(f"q{i}", i == 0, "2222") for i in range(9)]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "-88.9 points" in text and "a loss" in text


def test_a_run_that_read_labels_is_stamped(tmp_path: Path) -> None:
    assert "reads labels: a control, not a result" in text_of(write_run(tmp_path / "run", label_free=False))


def test_a_changed_tower_is_stamped(tmp_path: Path) -> None:
    assert "vision tower frozen, checksum CHANGED" in text_of(
        write_run(tmp_path / "run", tower_checksum_unchanged=False)
    )


def test_every_figure_is_written_as_png(finished: Path) -> None:
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    drawn = set(re.findall(r'id="figure-(\w+)"', (finished / "report.html").read_text()))
    assert (
        names == drawn >= {"scores_adapted", "scores_held_out", "accuracy", "entropy", "entropy_histogram", "seconds"}
    )
    for path in (finished / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_equal_files_give_the_same_page_and_matplotlib_stays_as_it_was(finished: Path) -> None:
    before = dict(matplotlib.rcParams)
    assert report.render_report(read_run(finished)) == (finished / "report.html").read_text()
    assert dict(matplotlib.rcParams) == before


def test_the_page_is_one_file_that_may_load_nothing(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "default-src 'none'" in html.replace("&#39;", "'")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', re.sub(r"<svg\b.*?</svg>", "", html, flags=re.S))
    assert len(re.findall(r"<script>", html)) == 1


def test_ids_of_the_drawings_do_not_meet(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]*)\)|xlink:href="#([^"]*)"', html)) <= {
        pair for x in ids for pair in ((x, ""), ("", x))
    }


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    before = [item(EVIL, False, [EVIL, "2"], text=EVIL)]
    after = [item(EVIL, True, ["1", EVIL], text=EVIL)]
    folder = write_run(
        tmp_path / "run", before, after, model=EVIL, benchmark=EVIL, skipped={EVIL: EVIL}, bad_rows=[EVIL],
        breakdowns={"before": {EVIL: {EVIL: {"n": 1}}}, "after": {EVIL: {EVIL: {"n": 1}}}}, method=EVIL, merger=EVIL,
        lmms_eval={EVIL: {EVIL: {EVIL: 0.5}}}, stopped_by=EVIL,
    )  # fmt: skip
    write_step(folder, 0, [group(EVIL, [rollout(EVIL, 0)], [EVIL], EVIL)])
    (folder / "config.yaml").write_text(json.dumps({"method": {"name": EVIL}, EVIL: EVIL}))
    changes.save_for_report(
        folder, changes.find_changes(rows_of(before), rows_of(after)).shown(), [Question(EVIL, (), EVIL, SPEC)], True
    )
    (folder / "adapted" / "tokenizer.json").unlink()  # then the response's text is what is shown
    write_json_lines(folder / "evaluation" / "steps.jsonl", [{**accuracy(0), "habits": {EVIL: 1.0}}])
    html = report.render_report(read_run(folder))
    assert "<script>alert" not in html and "</details>&" not in html
    assert html.count("alert(") > 10, "it is shown, escaped"
    for data in re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S):
        json.loads(data)


def test_lone_surrogates_do_not_cost_the_page(tmp_path: Path) -> None:
    before, after = (item("a\ud800", right, "12", text="\udfff") for right in (False, True))
    folder = write_run(tmp_path / "run")
    for when, row in (("before", before), ("after", after)):
        line = json.dumps(evaluation.to_json(row))
        (folder / "evaluation" / f"{when}.jsonl").write_text(line + "\n")
    assert "wrong → right" in page.write_page(tmp_path / "page.html", undrawn(folder)).read_text()


ABSENT = {
    "summary.json": "the run is unfinished",
    "config.yaml": "config.yaml is not in the folder",
    "environment.json": "environment.json is not in the folder",
    "steps.jsonl": "no step was made",
    "timings.jsonl": "timings.jsonl is not in the folder",
    "evaluation/steps.jsonl": "votes and rewards could not be graded",
    "evaluation/before.jsonl": "There is no evaluation before and after to compare",
    "evaluation/after.jsonl": "there was no evaluation after adapting",
    "rollouts": "no token entropies",
    "adapted": "tokens are shown by number",
    "images": "no image is shown",
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_file_that_is_absent_is_named(copy: Path, name: str) -> None:
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    text = text_of(copy)
    assert "Not on this page" in text and ABSENT[name] in text


@pytest.mark.parametrize("content", [b"[1, 2", b"[]", b"null", b'{"step": "x", "id": 3}', b"\xff\xfe", b""])
def test_damaged_files_cost_their_part_alone(copy: Path, content: bytes) -> None:
    for path in copy.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            path.write_bytes(content)
    assert "Not on this page" in text_of(copy)


@pytest.mark.parametrize("value", [[], 3, "x", None, {"greedy": "high", "greedy_ci95": [1]}])
def test_figures_of_another_kind_cost_their_place_alone(copy: Path, value: Any) -> None:
    names = (
        "before",
        "after",
        "held_out",
        "seconds",
        "tokens",
        "skipped",
        "bad_rows",
        "breakdowns",
        "steps",
        "lmms_eval",
    )
    whole = json.loads((copy / "summary.json").read_text())
    write_json(copy / "summary.json", whole | dict.fromkeys(names, value))
    assert "spine on digits" in text_of(copy)


@pytest.mark.parametrize("column", ["verdicts", "answers", "classes", "greedy", "vote"])
def test_items_of_another_kind_cost_their_part_alone(copy: Path, column: str) -> None:
    path = copy / "evaluation" / "after.jsonl"
    write_json_lines(path, [{**row, column: 7} for row in read_json_lines(path)])
    assert "spine on digits" in text_of(copy)


def test_an_unfinished_run_has_a_page(copy: Path) -> None:
    for name in ("summary.json", "evaluation/after.jsonl"):
        (copy / name).unlink()
    text = text_of(copy)
    assert "unfinished: no summary.json" in text and "Majority share" in text


def test_a_run_without_labels_shows_the_votes_that_moved(tmp_path: Path) -> None:
    before = [item("a", None, "1222"), item("b", None, "1112")]
    after = [item("a", None, "1112"), item("b", None, "1112")]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "No gold answers: the gain in accuracy is not known" in text
    assert "Another vote, no gold answer: 1" in text and "vote 2 (3 of 4) → 1 (3 of 4)" in text


def test_a_run_of_no_steps_has_a_page(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run", BEFORE, BEFORE, steps=0))
    assert "The run has no step" in text and "No question's greedy answer turned" in text
    assert "The run made no step: before and after are one evaluation" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; give the output folder"):
        report.write_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no run"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed_out_of_the_folder(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9), "red").save(secret)
    data = tmp_path / "steps.jsonl"
    data.write_text('{"step": 0, "loss": 4321.5}\n')
    for path, target in ((copy / "images" / f"{thumbnails.file_stem('a')}.png", secret), (copy / "steps.jsonl", data)):
        path.unlink()
        path.symlink_to(target)
    outside = tmp_path / "rollouts"
    (copy / "rollouts").rename(outside)
    (copy / "rollouts").symlink_to(outside)
    html = undrawn(copy)
    assert "4,322" not in html and "4322" not in html
    assert "steps.jsonl points out of the folder" in html
    assert "Responses from training" not in html
    assert list(thumbnails.read_thumbnails(copy, "a")) == []


def test_files_that_are_no_images_are_not_embedded(copy: Path) -> None:
    (copy / "images" / f"{thumbnails.file_stem('a')}.png").write_text("<svg onload=alert(1)>")
    assert list(thumbnails.read_thumbnails(copy, "a")) == []


def test_changes_by_hand() -> None:
    found = changes.find_changes(rows_of(BEFORE), rows_of(AFTER))
    assert [change.key for change in found.gained] == [("adapted", "a"), ("held_out", "e")]
    assert [change.key for change in found.lost] == [("adapted", "b")]
    assert found.moved == ()


def test_at_most_forty_questions_of_a_direction_are_shown(tmp_path: Path) -> None:
    before, after = ([item(f"q{i:02}", right, "12") for i in range(50)] for right in (False, True))
    html = undrawn(write_run(tmp_path / "run", before, after))
    assert html.count('<details class="question">') == 40
    assert "Wrong before, right after: 50" in html and "the first 40 are shown" in html


def test_thumbnails_are_small_and_named_by_hash(tmp_path: Path) -> None:
    name = "../../etc/<b>"
    noise = np.random.default_rng(0).integers(0, 255, (700, 1000, 3), dtype=np.uint8)
    images = (Image.fromarray(noise), Image.new("RGB", (64, 32), "white"), b"no image")
    thumbnails.save_thumbnails(tmp_path / "images", Question(name, images, "?", SPEC))
    files = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in files] == [
        f"{thumbnails.file_stem(name, 1)}.png",
        f"{thumbnails.file_stem(name)}.jpg",
    ]
    assert size_of(files[0]) == (64, 32) and max(size_of(files[1])) == 256
    assert files[1].stat().st_size < 100_000
    assert [media for media, _ in thumbnails.read_thumbnails(tmp_path, name)] == ["image/jpeg", "image/png"]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_entropy_is_counted_by_selection(tmp_path: Path) -> None:
    one = group("a", [rollout("a", 0, (7, 8, 7), (0.5, 0.125, 0.25)), rollout("a", 1, (8, 9), (2.0, 0.0))], ["1", "1"])
    write_step(tmp_path, 0, [one], [[np.array([1, 0, 1], bool), np.array([1, 0], bool)]])
    found = token_entropy.count_by_entropy(sorted((tmp_path / "rollouts").iterdir()))
    assert found is not None and (found.selected_B.sum(), found.others_B.sum()) == (3, 2)
    assert np.flatnonzero(found.selected_B).tolist() == [25, 50, 200]
    assert found.threshold == pytest.approx((0.425, 1.125, 1.825))  # of the lowest selected, 0.25 and 2.0
    assert found.tokens == (token_entropy.SelectedToken(7, 2, 0.375, 1.0), token_entropy.SelectedToken(8, 1, 2.0, 0.5))


def test_a_selection_that_does_not_go_by_entropy_has_no_threshold(tmp_path: Path) -> None:
    groups = [group("a", [rollout("a", i) for i in range(4)], ["1"] * 4)]
    write_step(tmp_path, 0, groups, [[np.arange(6) % 2 == 1] * 4])
    found = token_entropy.count_by_entropy([tmp_path / "rollouts" / "step_000000.parquet"])
    assert found is not None and found.threshold is None
    write_step(tmp_path, 0, groups, [[np.ones(6, bool)] * 4])
    found = token_entropy.count_by_entropy([tmp_path / "rollouts" / "step_000000.parquet"])
    assert found is not None and found.threshold is None and found.selected_B.sum() == 24


def test_rollouts_without_entropies_have_no_histogram(copy: Path) -> None:
    bare = Rollout("a", 0, IDS, "I see 5.", np.zeros(6, np.float32), None, "stop")
    shutil.rmtree(copy / "rollouts")
    write_rollouts(copy / "rollouts" / "step_000000.parquet", [group("a", [bare], ["1"])], 0)
    text = text_of(copy)
    assert "no histogram and no token to list" in text and "Responses from training" in text


def test_pieces_join_to_the_text() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    text = "I see 5. Ω and 汉 and 🦴"
    ids = tokenizer.encode(text).ids
    pieces = token_text.token_texts(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text
    assert token_text.token_texts(tokenizer, ids[:-1])[-1] != "", "half a character is shown as such"
    assert token_text.token_texts(tokenizer, [10**8]) == [""]


def test_responses_are_from_the_first_and_the_last_step(tmp_path: Path) -> None:
    for step, asked in enumerate(("a", "b", "a", "a", "c")):
        rows = [rollout(asked, i) for i in range(4)]
        write_step(tmp_path, step, [group(asked, rows, ["1", "1", "2", None])])
    paths = sorted((tmp_path / "rollouts").iterdir())
    found = training_responses.read_responses(paths, ["a", "b"], 4)
    places = {name: [(row["step"], row["index"]) for row in rows] for name, rows in found.items()}
    assert places == {"a": [(0, 0), (0, 2), (3, 0), (3, 2)], "b": [(1, 0), (1, 2), (1, 1), (1, 3)]}


def test_the_middle_of_a_long_response_is_left_out() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    n = 1000
    row = {
        "step": 0, "index": 0, "answer": "1", "vote": "1", "reward": 1.0, "finish_reason": "length", "text": "",
        "token_ids": [20] * n, "logp": [-0.5] * n, "entropy": [float("nan")] + [0.12345] * (n - 1),
        "selected": [True] * n, "parent": None, "fork_at": None,
    }  # fmt: skip
    shown = training_responses.response_for_page(row, tokenizer)
    assert (shown["length"], shown["cut"], len(shown["tokens"])) == (
        n,
        HEAD,
        HEAD + TAIL,
    )
    assert shown["entropy"][:2] == [None, 0.123] and shown["won"] is True
    assert "tokens" not in training_responses.response_for_page({**row, "token_ids": [-1]}, tokenizer)


def test_curves_skip_what_is_no_number(copy: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 0, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": "x"}]
    write_json_lines(copy / "steps.jsonl", rows)
    drawn = {chart.name: chart for chart in curves.charts(read_run(copy))}
    assert drawn["loss"].series == (curves.Series("total", (0.0, 1.0), (1.0, 2.0)),)
    assert "entropy" not in drawn and "accuracy" in drawn


def test_long_curves_are_thinned_and_say_so(copy: Path) -> None:
    write_json_lines(copy / "steps.jsonl", [{"step": i, "loss": 1.0} for i in range(2 * curves.MAX_POINTS + 2)])
    (chart,) = (chart for chart in curves.charts(read_run(copy)) if chart.name == "loss")
    assert len(chart.series[0].x) <= curves.MAX_POINTS and "Thinned" in chart.note


def test_the_band_is_drawn_between_its_bounds(finished: Path) -> None:
    (chart,) = (chart for chart in curves.charts(read_run(finished)) if chart.name == "entropy")
    assert chart.band is not None and (chart.band[0].y[0], chart.band[1].y[0]) == (0.3, 0.6)
    with figures.style():
        figure = figures.draw_chart(chart)
    area = figure.axes[0].collections[0].get_datalim(figure.axes[0].transData)
    assert (area.y0, area.y1) == pytest.approx((0.3, 0.6))


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    css = (Path(page.__file__).parent / "pages" / "page.css").read_text()
    return [dict(re.findall(r"--([\w]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]


def test_both_themes_can_be_read() -> None:
    """WCAG 2.2: 4.5 : 1 for text (1.4.3), 3 : 1 for lines (1.4.11)."""
    light, dark = themes()
    for theme in (light, dark):
        for ground in ("page", "card"):
            assert all(contrast(theme[name], theme[ground]) >= 4.5 for name in ("ink", "muted", "good", "bad"))
            assert all(contrast(theme[f"s{i}"], theme[ground]) >= 3 for i in range(1, 7))
    assert [light[f"s{i}"] for i in range(1, 7)] == list(figures.COLOURS)


def test_the_command_writes_page_and_figures(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    apart = CliRunner().invoke(cli.app, ["report", str(copy), "--output", str(tmp_path / "apart.html")])
    assert apart.exit_code == 0 and (tmp_path / "apart.html").is_file() and not (copy / "figures").exists()
    done = CliRunner().invoke(cli.app, ["report", str(copy)])
    assert done.exit_code == 0, done.output
    assert (copy / "report.html").is_file() and (copy / "figures" / "loss.png").is_file()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("other") / "ttrl", BEFORE, BEFORE, steps=2, method="ttrl $x$ _y")


def test_a_comparison_has_the_table_and_a_line_for_each_run(finished: Path, other: Path, tmp_path: Path) -> None:
    html = report.write_comparison([finished, other], tmp_path / "c.html").read_text()
    assert "2 runs compared" in html and "ttrl $x$ _y" in html and "pass@1 against spine" in html
    (data,) = re.findall(r'id="figure-majority_share".*?<script type="application/json">(.*?)</script>', html, re.S)
    assert [line["label"] for line in json.loads(data)["lines"]] == ["spine", "ttrl $x$ _y"]


def test_a_comparison_as_picture(finished: Path, other: Path, tmp_path: Path) -> None:
    assert size_of(report.write_comparison([finished, other], tmp_path / "c.png"))[0] > 1000
    with pytest.raises(ValueError, match=r"ends in \.html"):
        report.write_comparison([finished], tmp_path / "c.pdf")


def test_compare_writes_what_it_is_asked_for(finished: Path, other: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["compare", str(finished), str(other), "--output", str(tmp_path / "c.html")])
    assert done.exit_code == 0 and "written to" in done.output and (tmp_path / "c.html").is_file()


def test_a_run_looks_alike_in_every_figure(finished: Path, other: Path) -> None:
    write_json_lines(other / "evaluation" / "steps.jsonl", [])
    runs = [("other", read_run(other)), ("finished", read_run(finished))]
    places = {(line.label, line.place) for chart in curves.overlaid(runs) for line in chart.series}
    assert places == {("other", 0), ("finished", 1)}


def test_runs_of_one_name_are_told_apart(finished: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again")
    assert [name for name, _ in report._named_runs([finished, again])] == ["spine (run)", "spine (again)"]


# A real run.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    run(small_config(_own(root)), root / "run")
    return root


def _own(root: Path) -> dict[str, Any]:
    return {"benchmark": str(write_data(root / "data")), "model": {"path": str(write_model(root / "model"))}}


def test_a_run_ends_with_its_report(real: Path) -> None:
    assert "Not on this page" not in text_of(real / "run") or "images/" in text_of(real / "run")
    assert (real / "run" / "report.html").stat().st_size > 50_000
    assert (real / "run" / "figures" / "entropy_histogram.png").is_file()


def test_only_the_questions_that_changed_have_thumbnails(real: Path) -> None:
    saved = read_run(real / "run")
    shown = [change.key[1] for change in changes.find_changes(saved.before, saved.after).shown()]
    wanted = {f"{thumbnails.file_stem(name)}.png" for name in shown}
    folder = real / "run" / "images"
    assert {path.name for path in folder.iterdir()} == wanted if wanted else not folder.exists()
    assert {name for _, name in saved.questions} == set(shown)


def test_a_failing_report_does_not_lose_the_run_and_without_images_none_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: Path) -> Path:
        raise RuntimeError("no room")

    monkeypatch.setattr(report, "write_report", fail)
    with caplog.at_level(logging.ERROR):
        summary = run(small_config(_own(tmp_path), {"reporting": {"images": False}}), tmp_path / "run")
    assert summary is not None and (tmp_path / "run" / "summary.json").is_file()
    assert "the run is complete, its report is not" in caplog.text and "mm-spine report" in caplog.text
    assert not (tmp_path / "run" / "images").exists()
    html = undrawn(tmp_path / "run")
    assert "data:image" not in html and "reporting.images was false" in html


# In a browser.


def test_both_pages_open_without_error_or_request_at_any_width(finished: Path, large: Path) -> None:
    """One browser for all of it: to start one takes longer than what it is asked."""
    with open_page(finished / "report.html") as opened:
        for width, dark in ((1280, False), (390, True)):
            opened.page.set_viewport_size({"width": width, "height": 900})
            opened.page.emulate_media(color_scheme="dark" if dark else "light")
            opened.page.reload()
            for summary in opened.page.locator("summary").all():
                summary.click()
            assert (opened.errors, opened.fetched(), opened.too_wide()) == ([], [], 0)
            assert (luminance(_ground(opened.page)) < 0.2) is dark
            if width == 1280:
                _reads_tokens_and_curves(opened.page)
                _reads_by_keys(opened.page)
        opened.page.emulate_media(media="print", color_scheme="dark")
        assert luminance(_ink(opened.page)) < 0.2, "paper is white"
        assert opened.page.evaluate(_BARRED) == [False, "img-src", "script-src-attr", "script-src-elem"]
        opened.errors.clear()
        opened.requests.clear()
        opened.page.goto(large.as_uri())
        opened.page.locator("details.question > summary").first.click()
        assert opened.page.locator("details.question .tok").count() == 4 * (HEAD + TAIL)
        assert (opened.errors, opened.fetched(), opened.too_wide()) == ([], [], 0)


_BARRED = """new Promise(told => {
  window.ran = false;
  const seen = [];
  document.addEventListener("securitypolicyviolation", event => {
    seen.push(event.effectiveDirective);
    if (seen.length === 3) told([window.ran, ...seen.sort()]);
  });
  document.body.insertAdjacentHTML("beforeend", "<b onclick='ran = true'></b>");
  document.body.lastChild.click();
  document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = true" }));
  document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.1:9/x.png" }));
})"""
"""What text that got into the page as markup would try: to run a script, two ways, and to fetch an image."""


def _ground(at: Any) -> str:
    return _hex(at.evaluate("getComputedStyle(document.body).backgroundColor"))


def _ink(at: Any) -> str:
    return _hex(at.evaluate("getComputedStyle(document.body).color"))


def _hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def _reads_by_keys(at: Any) -> None:
    """What the pointer reads out, the arrow keys do, too."""
    at.locator("details.question").first.locator("p.tokens").first.focus()
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowLeft"):
        at.keyboard.press(key)
    assert at.locator(".tok.on").inner_text() == "." and "log-prob" in at.locator("#tip").inner_text()
    at.keyboard.press("Escape")
    assert at.locator("#tip").is_hidden()
    curve = at.locator("#figure-majority_share")
    curve.locator("svg").focus()
    at.keyboard.press("End")
    assert curve.locator(".readout").inner_text().startswith("step 2: winner 70.0 %")
    at.keyboard.press("ArrowLeft")
    assert curve.locator(".readout").inner_text().startswith("step 1: ")


def _reads_tokens_and_curves(at: Any) -> None:
    """Tokens are coloured, underlined where selected, and tell entropy and log-prob; curves tell their values."""
    roll = at.locator("details.question").first.locator(".roll").first
    spans = roll.locator(".tok")
    assert spans.all_inner_texts() == ["I", " see", " ", "5", ".", "<|im_end|>"]
    assert [("s" in name.split()) for name in spans.evaluate_all("all => all.map(x => x.className)")] == [True] * 2 + [
        False
    ] * 4
    shades = spans.evaluate_all("all => all.map(x => getComputedStyle(x).backgroundColor)")
    assert shades[0] != shades[-1]
    spans.first.hover()
    assert at.locator("#tip").inner_text() == "entropy 1.000 nats\nlog-prob -0.250 nats\nselected to train"
    curve = at.locator("#figure-majority_share")
    box = curve.locator("svg").bounding_box()
    curve.locator("svg").hover(position={"x": 0.56 * box["width"], "y": 0.5 * box["height"]})
    assert curve.locator(".readout").inner_text() == "step 1: winner 60.0 %, margin 0.0 %, unanimous 0.0 %"


def write_large_run(folder: Path, steps: int = 500, questions: int = 1000) -> Path:
    """500 steps, 1,000 questions that all changed, long responses, photographs of noise."""
    names = [f"benchmark/split/{i:05}" for i in range(questions)]
    words = "Looking at the image, the left lower lobe shows an opacity. " * 40
    before = [item(name, i % 2 == 0, "11222333", text=words) for i, name in enumerate(names)]
    after = [item(name, i % 2 == 1, "22113334", text=words) for i, name in enumerate(names)]
    write_run(folder, before, after, steps=0)
    write_json_lines(folder / "steps.jsonl", [step_report(i) for i in range(steps)])
    write_json_lines(folder / "timings.jsonl", [timing(i) for i in range(steps)])
    write_json_lines(folder / "evaluation" / "steps.jsonl", [accuracy(i) for i in range(steps)])
    rng = np.random.default_rng(0)
    for step in range(21):  # long where the page shows them; all later steps are alike
        asked = names[4 * step : 4 * step + 4]
        drawn = [_drawn(name, 900 if step < 20 else 60, rng) for name in asked]
        write_step(folder, step, [group(rolls[0].question_id, rolls, ["1", "2", "3", None]) for rolls in drawn])
    for step in range(21, steps):
        shutil.copy(folder / "rollouts" / "step_000020.parquet", folder / "rollouts" / f"step_{step:06d}.parquet")
    noise = rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)
    shown = changes.find_changes(rows_of(before), rows_of(after)).shown()
    asked_of = [Question(name, (Image.fromarray(noise),), words[:300], SPEC) for name in names]
    changes.save_for_report(folder, shown, asked_of, images=True)
    return folder


def _drawn(name: str, length: int, rng: np.random.Generator) -> list[Rollout]:
    return [
        rollout(name, i, rng.integers(0, 300, length).tolist(), np.sort(rng.exponential(0.3, length))[::-1])
        for i in range(4)
    ]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    return report.write_report(write_large_run(folder / "run"), folder / "page.html")


def test_a_run_of_500_steps_and_1000_questions_stays_below_15_mb(large: Path) -> None:
    html = large.read_text()
    assert html.count('<details class="question">') == 80 and html.count("data:image/jpeg") == 80
    assert large.stat().st_size < 15_000_000


def test_what_does_not_fit_is_left_out_and_said(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_questions, "IMAGE_BYTES", 10)
    monkeypatch.setattr(changed_questions, "RESPONSE_BYTES", 10)
    text = text_of(finished)
    assert "Images of 3 questions are left out" in text and "Responses of 2 questions are left out" in text


def test_the_numbers_of_every_step_are_a_table(finished: Path) -> None:
    table = overview.step_table(read_run(finished))
    assert table.columns[4] == "majority_share" and [row[4] for row in table.rows] == ["0.5", "0.6", "0.7"]


# What the page says.


def test_shares_are_of_the_questions_with_a_gold_answer(tmp_path: Path) -> None:
    before = [item("a", False, "1222"), item("b", None, "1112"), item("c", None, "1112")]
    after = [item("a", True, "1112"), item("b", None, "1112"), item("c", None, "1112")]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "right on 100.0 % of 1 questions with a gold answer" in text and "of 3 questions" not in text


def test_answers_that_are_partly_right_are_scored_not_counted(finished: Path, copy: Path) -> None:
    assert "is right on" in text_of(finished)
    for when in ("before", "after"):
        path = copy / "evaluation" / f"{when}.jsonl"
        rows = [{**row, "greedy": {"score": 0.3, "correct": False, "why": ""}} for row in read_json_lines(path)]
        write_json_lines(path, rows)
    text = text_of(copy)
    assert "One greedy answer scores 50.0 % over 4 questions" in text and "is right on" not in text


def test_few_questions_are_said_to_be_few(tmp_path: Path, finished: Path) -> None:
    many = [item(f"q{i}", True, "1111") for i in range(20)]
    assert "fewer than 20 questions" in text_of(finished)
    assert "fewer than 20 questions" not in text_of(write_run(tmp_path / "run", many, many))


def test_what_shows_a_collapse_stands_there_without_labels(tmp_path: Path) -> None:
    rows = [item("a", None, "1222"), item("b", None, "1112")]
    text = text_of(write_run(tmp_path / "run", rows, rows))
    assert "without an answer 0.0 % 0.0 %" in text and "mean length, tokens 3.0 3.0" in text
    assert "mean entropy, nats 0.500 0.500" in text and "95 % interval" not in text


def test_a_run_of_no_step_trained_nothing_and_cast_no_vote(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run", BEFORE, BEFORE, steps=0))
    assert "none: no step" in text and "votes a question" not in text and "adapted greedy less" not in text


def test_votes_that_may_end_early_are_at_most(copy: Path) -> None:
    assert "4 votes a question" in text_of(copy) and "at most 4" not in text_of(copy)
    (copy / "config.yaml").write_text("sampling: {votes: {max: 4, stop: decided}}\nlimit: 9\n")
    text = text_of(copy)
    assert "at most 4 votes a question" in text and "limit 9: only the first questions" in text


def test_figures_of_several_processes_say_whose_they_are(copy: Path) -> None:
    write_json(copy / "environment.json", {"processes": 2, "gpus": ["H200", "H200"]})
    text = text_of(copy)
    assert "of the GPU, the first of 2" in text and "the first of 2 processes" in text


def test_a_run_with_scope_question_says_what_its_steps_are(copy: Path) -> None:
    assert "adapted to it alone" not in text_of(copy)
    (copy / "config.yaml").write_text("scope: question\n")
    assert "the model adapted to it alone" in text_of(copy) and "Each question was adapted to alone" in text_of(copy)


def test_a_stopped_run_says_by_what(copy: Path) -> None:
    (copy / "summary.json").unlink()
    write_json(copy / "stopped.json", {"stopped_by": "SIGINT", "steps": 2})
    assert "stopped by SIGINT after 2 steps" in text_of(copy)


def test_evaluations_of_other_questions_have_no_differences_and_say_so(copy: Path) -> None:
    path = copy / "evaluation" / "after.jsonl"
    write_json_lines(path, read_json_lines(path)[1:])
    assert "No differences can be given: before.jsonl has 6 questions and after.jsonl 5" in text_of(copy)


def test_branches_of_a_tree_are_shown_as_such(copy: Path) -> None:
    shutil.rmtree(copy / "rollouts")
    root, leaf = rollout("a", 0), dataclasses.replace(rollout("a", 1), parent=0, fork_at=2)
    write_step(copy, 0, [group("a", [root, leaf], ["1", "2"])])
    assert "Tokens that branches of a tree share are counted in each" in text_of(copy)
    html = undrawn(copy)
    (shown,) = re.findall(r'<script type="application/json">(\[.*?\])</script>', html, flags=re.S)
    assert [(row["parent"], row["fork_at"]) for row in json.loads(shown)] == [(None, None), (0, 2)]


def test_equal_answers_written_otherwise_are_no_other_vote() -> None:
    before, after = item("a", None, "55"), item("a", None, "55")
    after = dataclasses.replace(after, vote=Answer("5.0", "5"))
    assert changes.find_changes(rows_of([before]), rows_of([after])).moved == ()
    after = dataclasses.replace(after, vote=Answer("5", "6"))
    assert len(changes.find_changes(rows_of([before]), rows_of([after])).moved) == 1


def test_answers_beyond_the_first_are_counted_together(tmp_path: Path) -> None:
    before, after = item("a", False, "123456789"), item("a", True, "111111111")
    text = text_of(write_run(tmp_path / "run", [before], [after]))
    assert "4 other answers 4 0" in text


# What may stand in a file.


@pytest.mark.parametrize("value", ["1" * 400, "1e308"])
def test_a_number_that_cannot_be_drawn_costs_its_figure_alone(copy: Path, value: str) -> None:
    (copy / "steps.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {value}, "parity_max": {value}}}\n' for i in (0, 1))
    )
    html = report.render_report(read_run(copy))
    assert 'id="figure-accuracy"' in html and "figure-parity" not in html
    for data in re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S):
        assert "Infinity" not in data


def test_a_score_that_is_no_number_is_not_shown(copy: Path) -> None:
    path = copy / "evaluation" / "after.jsonl"
    path.write_text(path.read_text().replace('"score": 1.0', '"score": NaN', 1))
    text = text_of(copy)
    assert "its greedy is no number" in text and not re.search(r"\bnan\b", text)


def test_deep_nesting_costs_its_file_alone(copy: Path) -> None:
    (copy / "environment.json").write_text("[" * 100_000)
    assert "environment.json could not be read" in text_of(copy)


def test_no_figure_is_written_through_a_link(copy: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "mine.png", tmp_path / "outside"
    target.write_text("mine")
    outside.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png", lambda figure, title="": b"drawn")
        (copy / "figures" / "loss.png").unlink()
        (copy / "figures" / "loss.png").symlink_to(target)
        report.write_report(copy)
        shutil.rmtree(copy / "figures")
        (copy / "figures").symlink_to(outside)
        page_ = report.write_report(copy).read_text()
    assert target.read_text() == "mine" and list(outside.iterdir()) == []
    assert "figures/ points out of the folder" in page_


def test_text_that_turns_the_line_stays_in_its_place(copy: Path) -> None:
    path = copy / "evaluation" / "after.jsonl"
    path.write_text(path.read_text().replace('"vote": {"text": "1"', '"vote": {"text": "\u202e1"'))
    assert "<bdi>\u202e1 (3 of 4)</bdi>" in undrawn(copy)
    assert page._visible("a\u200b \u202e") == "aU+200B␣U+202E"


def test_long_answers_and_verdicts_are_shortened(copy: Path) -> None:
    long = "x" * 100_000
    path = copy / "evaluation" / "after.jsonl"
    rows = read_json_lines(path)
    write_json_lines(path, [{**row, "greedy_text": long, "greedy": {**row["greedy"], "why": long}} for row in rows])
    write_step(copy, 0, [group("a", [rollout("a", 0)], [long], long)])
    assert len(undrawn(copy)) < 150_000


def test_a_page_is_not_written_over_a_folder(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder; give the name of the page in it"):
        report.write_report(copy, tmp_path)
