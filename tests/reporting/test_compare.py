from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from mm_spine import evaluation
from mm_spine.evaluation import Item
from mm_spine.files import write_json, write_json_lines
from mm_spine.intervals import bootstrap_ci
from mm_spine.reporting.compare import compare_runs, comparison_notes, comparison_table
from mm_spine.reporting.comparison import write_comparison
from mm_spine.types import Verdict

QUESTIONS = 40


def item(name: str, split: str, greedy: float, samples: Sequence[float], voted: float, labelled: bool = True) -> Item:
    n = len(samples)
    verdicts = tuple(Verdict(score, score > 0.5, "") for score in samples)
    return Item(
        name, split, "", Verdict(greedy, greedy > 0.5, "") if labelled else None, ("",) * n, (None,) * n, (None,) * n,
        verdicts if labelled else None, None, voted if labelled else None, (3,) * n, (0.5,) * n, (False,) * n,
    )  # fmt: skip


def items(accuracy: float, seed: int, splits: Sequence[str] = ("adapted", "held_out"), **more: Any) -> list[Item]:
    """Questions answered rightly with probability `accuracy`, 4 samples each."""
    rng = np.random.default_rng(seed)

    def right(n: int) -> list[float]:
        return rng.binomial(1, accuracy, n).astype(float).tolist()

    return [item(f"q{i}", split, *right(1), right(4), 1.0, **more) for split in splits for i in range(QUESTIONS)]


def save(folder: Path, method: str, before: list[Item], after: list[Item], seed: int = 0, **summary: Any) -> Path:
    given = {"benchmark": "digits", "method": method, "model": "tiny", "seed": seed, "label_free": True} | summary
    write_json(folder / "summary.json", given)
    for when, saved in (("before", before), ("after", after)):
        write_json_lines(folder / "evaluation" / f"{when}.jsonl", map(evaluation.to_json, saved))
    return folder


def only(split: str, saved: Sequence[Item]) -> list[Item]:
    return [item for item in saved if item.split == split]


def text(runs: Sequence[Path], width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(compare_runs(runs)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_by_hand(tmp_path: Path) -> None:
    before = [item("a", "adapted", 0, (0, 1, 0, 0), 0), item("b", "adapted", 1, (1, 1, 0, 0), 1)]
    after = [item("b", "adapted", 1, (1, 1, 1, 0), 1), item("a", "adapted", 1, (1, 1, 1, 1), 1)]
    (row,) = compare_runs([save(tmp_path / "run", "spine", before, after)]).rows
    assert (row.run, row.method, row.seed, row.split, row.questions, row.samples) == (
        "run",
        "spine",
        0,
        "adapted",
        2,
        4,
    )
    assert row.greedy == (0.5, 1.0)
    assert row.pass_at_1 == (0.375, 0.875)
    assert row.maj_at_n == (0.5, 1.0)
    assert row.greedy_gain == (0.5, 0.0, 1.0)
    assert row.pass_at_1_gain == (0.5, 0.25, 0.75)
    assert row.against_first is None
    shown = text([tmp_path / "run"])
    for cell in (
        "n=2",
        "50.0 → 100.0",
        "37.5 → 87.5",
        "[+25.0, +75.0]",
        "maj@4",
        "digits, tiny",
    ):
        assert cell in shown
    assert "against" not in shown


def difference(before: Sequence[Item], after: Sequence[Item], measure: str) -> tuple[float, float, float]:
    """The mean of after - before over the same questions, and its 95 % bootstrap interval."""
    value = evaluation.MEASURES[measure]
    values = np.array([value(new) for new in after]) - np.array([value(old) for old in before])
    return float(values.mean()), *bootstrap_ci(values)


def test_intervals_are_those_of_the_evaluation(tmp_path: Path) -> None:
    before, ttrl, spine = items(0.4, 0), items(0.6, 1), items(0.7, 2)
    runs = [save(tmp_path / "t", "ttrl", before, ttrl), save(tmp_path / "s", "spine", before, spine)]
    compared = compare_runs(runs).rows
    assert [(row.method, row.split) for row in compared] == [
        ("ttrl", "adapted"), ("spine", "adapted"), ("ttrl", "held_out"), ("spine", "held_out"),
    ]  # fmt: skip
    for row, after in zip(compared, (ttrl, spine, ttrl, spine), strict=True):
        assert row.split is not None
        old, new = only(row.split, before), only(row.split, after)
        block = evaluation.metrics(old)
        assert (row.greedy[0], row.pass_at_1[0]) == pytest.approx((block["greedy"], block["pass_at_1"]))
        for gain, measure in ((row.greedy_gain, "greedy"), (row.pass_at_1_gain, "pass_at_1")):
            assert gain == pytest.approx(difference(old, new, measure))
    expected = difference(only("held_out", ttrl), only("held_out", spine), "pass_at_1")
    assert compared[3].against_first == pytest.approx(expected)
    assert compared[0].against_first is None and compared[2].against_first is None
    assert "pass@1 against" in text(runs)


def test_means_over_seeds_with_students_t(tmp_path: Path) -> None:
    runs = []
    for seed in range(3):
        before = items(0.4, seed, ("adapted",))
        runs.append(save(tmp_path / f"t{seed}", "ttrl", before, items(0.5, 10 + seed, ("adapted",)), seed))
        runs.append(save(tmp_path / f"s{seed}", "spine", before, items(0.8, 20 + seed, ("adapted",)), seed))
    *single, ttrl, spine = compare_runs(runs).rows
    assert [row.seed for row in single] == [0, 0, 1, 1, 2, 2]
    assert [(row.method, row.seed, row.seeds) for row in (ttrl, spine)] == [("ttrl", None, 3), ("spine", None, 3)]
    for mean, name in ((spine, "pass_at_1_gain"), (spine, "greedy_gain"), (spine, "against_first")):
        values = [getattr(row, name).value for row in single if row.method == "spine"]
        reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert getattr(mean, name) == pytest.approx((np.mean(values), reference.low, reference.high))
    assert ttrl.against_first is None
    assert spine.pass_at_1[1] == pytest.approx(np.mean([row.pass_at_1[1] for row in single if row.method == "spine"]))
    assert "3 seeds" in text(runs)


def test_seeds_are_paired_with_their_own_first_run(tmp_path: Path) -> None:
    before = items(0.4, 0)
    runs = [
        save(tmp_path / "t0", "ttrl", before, items(0.5, 1)),
        save(tmp_path / "s0", "spine", before, items(0.6, 2)),
        save(tmp_path / "s1", "spine", before, items(0.6, 3), seed=1),
    ]
    adapted = [row for row in compare_runs(runs).rows if row.split == "adapted"]
    assert [row.against_first is None for row in adapted] == [True, False, True, False]
    assert adapted[2].note == "no ttrl run with seed 1"
    assert adapted[3].against_first == (adapted[1].against_first.value, None, None)  # type: ignore[union-attr]
    shown = text(runs)
    assert "spine, seed 1, adapted: no ttrl run with seed 1" in shown
    assert "spine, 2 seeds, adapted: 1 of 2 seeds have no partner" in shown


def test_equal_method_and_seed_are_told_apart_and_not_averaged(tmp_path: Path) -> None:
    before = items(0.4, 0, ("adapted",))
    slow, fast = (save(tmp_path / name, "spine", before, items(0.5, i, ("adapted",))) for i, name in enumerate("ab"))
    compared = compare_runs([slow, fast]).rows
    assert [row.method for row in compared] == ["spine (a)", "spine (b)"]
    assert compared[0].against_first is None and compared[1].against_first is not None


def test_unfinished_runs_are_named_with_the_reason(tmp_path: Path) -> None:
    done = save(tmp_path / "done", "ttrl", items(0.4, 0), items(0.5, 1))
    torn = save(tmp_path / "torn", "spine", items(0.4, 0), items(0.5, 1))
    (torn / "evaluation" / "after.jsonl").unlink()
    bad = save(tmp_path / "bad", "spine", items(0.4, 0), items(0.5, 1))
    (bad / "summary.json").write_text("{")
    fewer = save(tmp_path / "fewer", "spine", items(0.4, 0), items(0.5, 1)[:-1])
    bare = save(tmp_path / "bare", "spine", items(0.4, 0), items(0.5, 1))
    (bare / "summary.json").write_text(json.dumps({"method": "spine"}))
    old = save(tmp_path / "old", "spine", items(0.4, 0), items(0.5, 1))
    for when in ("before", "after"):
        (old / "evaluation" / f"{when}.jsonl").write_text('{"id": "a", "split": "adapted"}\n')
    (tmp_path / "begun").mkdir()
    runs = [tmp_path / "absent", done, tmp_path / "begun", torn, bad, fewer, bare, old]
    compared = compare_runs(runs).rows
    assert [row.method for row in compared if row.split] == ["ttrl", "ttrl"]
    notes = {row.run: row.note for row in compared if row.split is None}
    assert notes["absent"] == "no such folder"
    assert notes["begun"] == "unfinished: no summary.json"
    assert notes["torn"] == "unfinished: no evaluation/after.jsonl"
    assert "not valid JSON" in notes["bad"]
    assert notes["fewer"] == "before.jsonl has 80 questions and after.jsonl 79, not the same ones"
    assert notes["bare"] == "summary.json has no benchmark, model, seed, label_free"
    assert notes["old"].startswith("written by another version")
    shown = text(runs)
    assert all(f"not compared: {name}: " in shown for name in notes)
    assert "not compared: begun" in text([tmp_path / "begun"])


@pytest.mark.parametrize(("key", "value"), [("benchmark", "slake"), ("model", "other")])
def test_other_benchmarks_or_models_are_refused(tmp_path: Path, key: str, value: str) -> None:
    before, after = items(0.4, 0), items(0.5, 1)
    runs = [save(tmp_path / "a", "ttrl", before, after), save(tmp_path / "b", "spine", before, after, **{key: value})]
    with pytest.raises(ValueError, match=f"their {key} differs: a has '.*', b has '{value}'"):
        compare_runs(runs)


def test_other_questions_and_no_runs_are_refused(tmp_path: Path) -> None:
    before, after = items(0.4, 0), items(0.5, 1)
    runs = [save(tmp_path / "a", "ttrl", before, after), save(tmp_path / "b", "spine", before[1:], after[1:])]
    with pytest.raises(ValueError, match="a and b cannot be compared: 1 adapted questions .* first 'q0'"):
        compare_runs(runs)
    with pytest.raises(ValueError, match="no run to compare"):
        compare_runs([])


def test_unlabelled_runs_and_label_using_runs(tmp_path: Path) -> None:
    blind = items(0.4, 0, ("adapted",), labelled=False)
    (row,) = compare_runs([save(tmp_path / "own", "spine", blind, blind)]).rows
    assert (row.greedy, row.pass_at_1_gain, row.questions) == ((None, None), None, QUESTIONS)
    assert "– → –" in text([tmp_path / "own"])
    known = items(0.4, 0)
    assert "oracle (uses labels)" in text([save(tmp_path / "o", "oracle", known, known, label_free=False)])


def test_no_figure_is_torn_in_a_narrow_terminal(tmp_path: Path) -> None:
    before = items(0.4, 0)
    runs = [save(tmp_path / name, name, before, items(0.6, i)) for i, name in enumerate(("random-mask", "spine"))]
    shown = text(runs, width=80)
    for row in compare_runs(runs).rows:
        assert row.pass_at_1_gain is not None and row.pass_at_1_gain.low is not None
        assert f"[{100 * row.pass_at_1_gain.low:+.1f}, {100 * row.pass_at_1_gain[2]:+.1f}]" in shown
        assert f"{100 * row.greedy[0]:.1f} → {100 * row.greedy[1]:.1f}" in shown
    assert "…" not in shown


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    known = items(0.4, 0)
    run = save(tmp_path / "run", "spine[b]", known, known, model="[red]m")
    assert "spine[b]" in text([run]) and "[red]m" in text([run])
    assert "not compared: [x]" in text([run, tmp_path / "[x]"])


ODD, SEEN = "a\x1b[2J\nb\u202e", r"a\x1b[2J\nb\u202e"


def test_no_name_of_a_run_reaches_a_terminal_or_a_page_raw(tmp_path: Path) -> None:
    known = items(0.4, 0)
    # Two runs of one method and seed are told apart by their folders.
    odd = save(tmp_path / ODD, ODD, known, known, benchmark=ODD, model=ODD)
    save(tmp_path / "b", ODD, known, known, benchmark=ODD, model=ODD)
    runs = [odd, tmp_path / "b", tmp_path / "\x07none"]
    (odd / "steps.jsonl").write_text(json.dumps({"step": 0, "length_mean": 3.0}) + "\n")
    shown = text(runs, width=400)
    page = write_comparison(runs, tmp_path / "page.html").read_text()
    for made in (shown, page):
        assert f"{SEEN} ({SEEN})" in made
        assert r"\x07none" in made
        assert not {*"\x1b\x07\u202e"} & {*made}
    assert f"{SEEN}, {SEEN}: before" in shown
    save(tmp_path / "b", ODD, known, known, benchmark="other", model=ODD)
    with pytest.raises(ValueError) as refused:
        compare_runs(runs[:2])
    assert not {*"\x1b\n\u202e"} & {*str(refused.value)}


def fingerprinted(run: Path, commit: str) -> Path:
    code = {"version": "0.1.0", "commit": commit}
    write_json(run / "fingerprint.json", {"model": "m", "questions": {}, "answers": {}, "config": {}, "code": code})
    return run


def test_runs_of_other_code_are_compared_with_a_warning_that_names_both_versions(tmp_path: Path) -> None:
    known = items(0.4, 0)
    runs = [save(tmp_path / name, name, known, known) for name in ("first", "second", "third", "old")]
    for run, commit in zip(runs, ("a" * 40, "b" * 40, "a" * 40), strict=False):
        fingerprinted(run, commit)
    warning = (
        "different code made these runs, so their results may differ for that reason: "
        f"first, third by mm-spine 0.1.0, commit {'a' * 12}; second by mm-spine 0.1.0, commit {'b' * 12}"
    )
    assert comparison_notes(compare_runs(runs).rows).count(warning) == 1
    assert "different code" in text(runs)
    assert warning in write_comparison(runs, tmp_path / "page.html").read_text()
    # An older version wrote no code version, and one version is no difference.
    for same in ([runs[0], runs[2], runs[3]], runs[3:]):
        assert not any("different code" in note for note in comparison_notes(compare_runs(same).rows))
