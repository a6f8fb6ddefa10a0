"""Run the whole path on random folders of odd questions, and count what becomes of every row.

    python scripts/bench/fuzz_folders.py --seed 0 --count 300

Each folder is adapted to for two steps on the tiny model of the tests. A run must end with a summary or with one
sentence, never with a traceback, and each row of the table must be asked, skipped by name, or reported as a bad row.
The last line is JSON. The exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SKIPPED = re.compile(r"^\S+, (?:line|row) \d+ skipped: ")
REPORT_EVERY = 10
"""A report takes as long as the rest of such a run, so only every tenth run writes one."""

PROMPTS = (
    "Which digit?", "", "  \n", None, 3, ["a"], "Left <image> right <image> same?", "<image_2> then <image_1>?",
    "<image9>", "Say <|im_end|> now", "a <|image_pad|> b", "x\x1b[31mred\x07", "half \ud800 here", "word " * 3000,
    "\u202eright to left", "Zahl \U0001f9ee?", "{{ 7 * 7 }} {% raw %}", r"\boxed{12} \frac{1}{2}", "Is it even?",
    "哪个数字？", "\x00", "<img> and <IMAGE>", "a\r\nb", "A" * 1_000_001,
)  # fmt: skip
IDS = (
    None, 7, "", "same", "same", "sur\ud800id", "line\nbreak", "esc\x1b[2J", "x" * 5000, "../../up", True, 1.5, [1],
    "nul\x00", "é", " ", "a/b", "\u2028", {"a": 1}, 10**30,
)  # fmt: skip
KINDS = ("integer", "text", "choice", "yes_no", "math", "medical", "vqa", "typed", "yes_no_maybe", "nonsense", 3, None)
CHOICES = (
    None, ["1", "2"], "1|2|3", [], ["a", ""], ["x"] * 30, [1, 2.5], ["\ud800", "b"], "one", [None], '["p", "q"]',
    [["a"]], {"A": "x"},
)  # fmt: skip
ANSWERS = (
    "1", 1, None, ["1", "2"], "", "A", "yes", {"a": 1}, 10**400, 1.5, "\ud800", True, "\\frac{1}{0}", "9^9^9^9", [],
    [None], "E",
)  # fmt: skip
IMAGES = (
    "good.png", "wide.png", "grey16.png", "rgba.png", "moving.gif", "absent.png", "torn.png", "empty.png", "text.png",
    "folder", "../secret.png", "/etc/passwd", "http://example.invalid/a.png", "thin.png", "", None, 3, [],
    ["good.png", "wide.png"], ["good.png", "torn.png"], {"path": "good.png"}, "good\x00.png", "x" * 400, "\ud800.png",
)  # fmt: skip
LINES = (b"{not json", b"[1, 2]", b"null", b"\xff\xfe", b'{"prompt": "a"', b"\xef\xbb\xbf{}", b"[" * 5000, b'"text"')
MORE = ("promt", "anwser", "imge", "note", "precision", "unit", "value_type", "ordered", "difficulty")


def write_images(folder: Path) -> None:
    """Write images of every kind, and files that are none."""
    (folder / "folder").mkdir()
    Image.new("RGB", (56, 28), "white").save(folder / "good.png")
    Image.new("RGB", (84, 28), "red").save(folder / "wide.png")
    Image.new("I;16", (28, 28), 40_000).save(folder / "grey16.png")
    Image.new("RGBA", (30, 31), (0, 0, 0, 0)).save(folder / "rgba.png")
    Image.new("L", (1, 400)).save(folder / "thin.png")
    frames = [Image.new("L", (28, 28), shade) for shade in (0, 255)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "torn.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")


def odd_row(rng: random.Random) -> dict[str, Any]:
    """Return a row of which about half the fields are as they should be."""
    row: dict[str, Any] = {"prompt": f"Which digit is number {rng.randrange(100)}?", "kind": "integer"}
    fields = {"prompt": PROMPTS, "id": IDS, "kind": KINDS, "choices": CHOICES, "answer": ANSWERS, "image": IMAGES}
    for name, values in fields.items():
        # Prompts and kinds are mostly usable, so that most rows reach the model.
        if rng.random() < (0.25 if name in row else 0.5):
            row[name] = rng.choice(values)
        elif name == "image" and rng.random() < 0.5:
            row[name] = "good.png"
    if rng.random() < 0.2:
        row[rng.choice(MORE)] = rng.choice(ANSWERS)
    if rng.random() < 0.1:
        del row["prompt"]
    return row


def write_folder(folder: Path, rng: random.Random) -> int:
    """Write images and a table of random rows; return the number of its rows."""
    folder.mkdir()
    write_images(folder)
    rows = [odd_row(rng) for _ in range(rng.randint(1, 12))]
    form = rng.choice(("jsonl", "jsonl", "jsonl", "json", "csv"))
    if rng.random() < 0.2:
        (folder / "columns.yaml").write_text(rng.choice(("tags: difficulty\n", "defaults:\n  kind: text\n")))
    if rng.random() < 0.3:
        (folder / "held_out.jsonl").write_text(json.dumps(odd_row(rng)) + "\n")
    if form == "json":
        (folder / "questions.json").write_text(json.dumps(rows))
    elif form == "csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / "questions.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            # A row without any value is a blank line, which is no row.
            rows = [row for row in rows if any(value not in (None, "") for value in row.values())]
            writer.writerows(
                {k: str(v).replace("\x00", "") if v is not None else "" for k, v in r.items()} for r in rows
            )
    else:
        lines = [json.dumps(row).encode() for row in rows]
        lines += [rng.choice(LINES) for _ in range(rng.choice((0, 0, 1, 2)))]
        rng.shuffle(lines)
        rows = [dict[str, Any]() for _ in lines]
        (folder / "questions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return len(rows)


def layer(data: Path, model: Path, seed: int) -> dict[str, Any]:
    """Return the settings of a run of two steps."""
    return {
        "benchmark": str(data),
        "model": {"path": str(model)},
        "method": {"name": random.Random(seed).choice(("spine", "spine", "ttrl", "rent", "spine-v2"))},
        "sampling": {"votes": 2, "train_rollouts": 2, "max_new_tokens": 4},
        "optim": {"steps": 2, "questions_per_step": 3, "lr": 0.0005},
        "evaluation": {"samples": 2, "max_new_tokens": 4},
        "seed": seed,
        "threads": 1,
    }


def problems_of(summary: Any, rows: int) -> list[str]:
    """Say what a summary does not account for, and which of its texts would reach a terminal raw."""
    bad = [line for line in summary["bad_rows"] if SKIPPED.match(line) and line.startswith("questions.")]
    skipped = [why for name, why in summary["skipped"].items() if name not in summary["held_out_ids"]]
    found = summary["n_questions"] + len(skipped) + len(bad)
    problems = (
        []
        if found == rows
        else [f"{rows} rows: {summary['n_questions']} asked, {len(skipped)} skipped, {len(bad)} bad"]
    )
    texts = [*summary["bad_rows"], *summary["skipped"].values()]
    return problems + [f"raw characters in {text[:80]!r}" for text in texts if CONTROL.search(text) or "\n" in text]


def one(seed: int, place: Path, model: Path) -> tuple[str, str]:
    """Make a folder and run it. Returns how it ended ("run", "refused", "lost", "traceback") and what was said."""
    from mm_spine.benchmarks.folder import load_table
    from mm_spine.config import RunStopped
    from mm_spine.methods.table import configure
    from mm_spine.runs import run as runs

    data, output = place / f"data{seed}", place / f"run{seed}"
    rows = write_folder(data, random.Random(seed))
    usual = runs.Run._report
    try:
        if seed % REPORT_EVERY:
            runs.Run._report = lambda self, splits: None  # type: ignore[method-assign]
        found: dict[str, Any] = {**(runs.run(configure(layer(data, model, seed)), output) or {})}
        held_out = data / "held_out.jsonl"
        kept = load_table(data, held_out).questions if held_out.is_file() else ()
        adapted = {question.id for question in load_table(data).questions}
        found["held_out_ids"] = {question.id for question in kept} - adapted
        if seed % REPORT_EVERY == 0 and not (output / "report.html").is_file():
            return "lost", "no report.html"
        problems = problems_of(found, rows)
        return ("lost", "; ".join(problems)) if problems else ("run", "")
    except (RunStopped, ValueError, OSError) as error:
        # `mm-spine` prints the message. It is a sentence only if our own code raised it: another's is an accident.
        raised_by = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if isinstance(error, UnicodeError) or not raised_by.is_relative_to(ROOT):
            return "traceback", traceback.format_exc()
        return "refused", str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        runs.Run._report = usual  # type: ignore[method-assign]


def fuzz(seed: int, count: int, place: Path, model: Path) -> Counter[str]:
    """Run `count` folders; print those that lost something. Returns how many ended in which way."""
    ended: Counter[str] = Counter()
    for each in range(seed, seed + count):
        how, told = one(each, place, model)
        ended[how] += 1
        if how in ("lost", "traceback"):
            print(f"seed {each}: {how}: {told}", flush=True)
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    given = parser.parse_args()
    # The tiny model is the tests' own.
    sys.path.insert(0, str(ROOT / "tests"))
    from small import write_model

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        ended = fuzz(given.seed, given.count, Path(place), write_model(Path(place) / "model"))
    print(json.dumps({"seed": given.seed, "count": given.count, **ended}))
    return int(bool(ended["lost"] or ended["traceback"]))


if __name__ == "__main__":
    sys.exit(main())
